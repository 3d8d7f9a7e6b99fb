-- Runs as they stand.
--
-- KEYS   1 meta; then the runs
-- ARGV   1 epoch  2 sequence
-- Reply  {DONE, sequence, raises, {a run as it is kept, or nil} …}
local told = {}
for at = 2, #KEYS do
  told[at - 1] = call('GET', KEYS[at])
end
return {DONE, sequence, raises, told}
