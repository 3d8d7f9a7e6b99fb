-- What is due in a sorted set by time.
--
-- KEYS   1 meta  2 the set
-- ARGV   1 epoch  2 sequence  3 at most  4 from when on, in ms before now  5 the length of a unit of its scores, in ms  6 how many to pass by
-- Reply  {DONE, sequence, now, {member, score, …}}, the oldest first
local latest = math.floor((now - tonumber(ARGV[4])) / tonumber(ARGV[5]))
return {DONE, sequence, now, call('ZRANGEBYSCORE', KEYS[2], '-inf', int(latest), 'WITHSCORES', 'LIMIT', ARGV[6], ARGV[3])}
