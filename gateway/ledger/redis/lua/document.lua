-- Writes a document, or removes it, if what stands there is what was expected.
--
-- KEYS   1 meta  2 documents  3 their number  4 the ids of the latest changes, the latest first
-- ARGV   1 epoch  2 sequence  3 name  4 the change's id  5 '1': there is a text  6 the text  7 '1': something is expected  8 the text expected
-- Reply  {DONE, sequence, 1: it is so now; 0: something else stands there}
local LATEST = 64 -- changes that are known again, when they are asked for a second time
local name, id = ARGV[3], ARGV[4]
for _, each in ipairs(call('LRANGE', KEYS[4], 0, -1)) do
  if each == id then
    return {DONE, sequence, 1}
  end
end
local text, expected, found = ARGV[5] == '1' and ARGV[6], ARGV[7] == '1' and ARGV[8], call('HGET', KEYS[2], name)
if found ~= expected then
  return {DONE, sequence, 0}
end
if text ~= expected then
  advance()
  if text then
    call('HSET', KEYS[2], name, text)
  else
    call('HDEL', KEYS[2], name)
  end
  call('INCR', KEYS[3])
  call('LPUSH', KEYS[4], id)
  call('LTRIM', KEYS[4], 0, LATEST - 1)
end
return {DONE, sequence, 1}
