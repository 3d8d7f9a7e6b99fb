-- A tenant becomes known, or its epoch is read. Stands alone: nothing is known yet to be checked.
--
-- KEYS   1 meta
-- ARGV   1 the epoch to give it if it has none; '' only looks
-- Reply  {epoch or '', sequence}
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'sequence')
if not meta[1] and ARGV[1] ~= '' then
  redis.call('HSET', KEYS[1], 'version', '1', 'epoch', ARGV[1], 'sequence', 0)
  meta = {ARGV[1], 0}
end
return {meta[1] or '', tonumber(meta[2]) or 0}
