-- Runs as they stand.
--
-- KEYS   1 meta; then the runs
-- ARGV   1 epoch  2 sequence  3… the fields of their hashes
-- Reply  {DONE, sequence, raises, {a value per field} …}
local fields, told = {}, {}
for at = 3, #ARGV do
  fields[at - 2] = ARGV[at]
end
for at = 2, #KEYS do
  told[at - 1] = call('HMGET', KEYS[at], unpack(fields))
end
return {DONE, sequence, tonumber(meta[3]) or 0, told}
