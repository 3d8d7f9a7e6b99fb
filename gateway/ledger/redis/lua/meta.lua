-- A tenant becomes known, its epoch is read, or replaced. Stands alone: nothing is known yet to be checked.
--
-- KEYS   1 meta
-- ARGV   1 the epoch to give it if it has none; '' only looks  2 the epoch that the first one replaces, or ''
-- Reply  {epoch or '', sequence, version}: what is kept in another version than this one's is left as it is
local META, META_SIZE, VERSION = '<ddddd', 40, 2 -- as in common.lua
if redis.call('TYPE', KEYS[1]).ok == 'hash' then -- as version 1 kept it
  return {'', 0, 1}
end
local meta = redis.call('GET', KEYS[1])
local epoch, sequence, raises, frozen, acts, version = '', 0, 0, 0, 0, VERSION
if meta then
  sequence, raises, frozen, acts, version = struct.unpack(META, meta)
  epoch = string.sub(meta, META_SIZE + 1)
end
if version == VERSION and ARGV[1] ~= '' and epoch == ARGV[2] then
  epoch = ARGV[1]
  redis.call('SET', KEYS[1], struct.pack(META, sequence, raises, frozen, acts, version) .. epoch)
end
return {epoch, sequence, version}
