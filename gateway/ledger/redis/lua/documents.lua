-- A tenant's documents, if they have changed.
--
-- KEYS   1 meta  2 documents  3 their number
-- ARGV   1 epoch  2 sequence  3 the number that is known
-- Reply  {DONE, sequence, number, {name, text, …} or nil: the number is the one that is known}
local number = tonumber(call('GET', KEYS[3]) or 0)
return {DONE, sequence, number, number ~= tonumber(ARGV[3]) and call('HGETALL', KEYS[2])}
