-- A memo: read, or written where there is none. It is kept as until when it stays, as a double, the id it was written with, and its text.
--
-- KEYS   1 meta  2 the memo  3 memos by time
-- ARGV   1 epoch  2 sequence  3 its name  4 the id to write it with, or '': only read  5 its text  6 for how long, in ms
-- Reply  {DONE, sequence, the text that was there before, or nil}
local ID, TEXT = 9, 25 -- where they start
local kept, id = call('GET', KEYS[2]), ARGV[4]
if kept and read('<d', kept) > now then
  if id ~= '' and string.sub(kept, ID, TEXT - 1) == id then -- written before: asked again
    return {DONE, sequence, false}
  end
  return {DONE, sequence, string.sub(kept, TEXT)}
end
if id ~= '' then
  local until_ms = now + tonumber(ARGV[6])
  advance()
  call('SET', KEYS[2], numbers('<d', until_ms) .. id .. ARGV[5])
  call('ZADD', KEYS[3], until_ms, ARGV[3])
end
return {DONE, sequence, false}
