-- Freezes a scope, or thaws it.
--
-- KEYS   1 meta  2 frozen  3 how and why, by text  4 acts  5 acts in order
-- ARGV   1 epoch  2 sequence  3 freeze or thaw  4 the scope's text  5 the act's id  6 its text  7 the freeze's: JSON
-- Reply  {DONE, sequence, changed}
local is_frozen = call('ZSCORE', KEYS[2], ARGV[4])
if call('HEXISTS', KEYS[4], ARGV[5]) == 1 then -- done before: asked again
  return {DONE, sequence, 1}
end
if (ARGV[3] == 'freeze') == (is_frozen and true or false) then
  return {DONE, sequence, 0}
end
if is_frozen then
  frozen = frozen - 1
  advance()
  call('ZREM', KEYS[2], ARGV[4])
  call('HDEL', KEYS[3], ARGV[4])
else
  frozen = frozen + 1
  advance()
  call('ZADD', KEYS[2], 0, ARGV[4])
  call('HSET', KEYS[3], ARGV[4], int(now) .. ' ' .. ARGV[7])
end
act(KEYS[4], KEYS[5], ARGV[5], ARGV[6])
return {DONE, sequence, 1}
