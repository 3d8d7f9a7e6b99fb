-- What people do to a run: its own limit, stop, pause, resume.
--
-- KEYS   1 meta  2 the run  3 runs  4 the runs of the owner it has  5 the runs of the owner it gets  6 that owner's active runs  7 acts
--        8 acts in order
-- ARGV   1 epoch  2 sequence  3 what  4 the run's name  5 the owner it has, as the gateway saw  6 the act's id  7 its text  8 who
--        9 set_limit: the limit  10 by the admin: '1'  11 the owner who asks
-- Reply  {DONE, sequence}  {UNKNOWN, sequence}: no such run, or another's  {AGAIN, sequence}: it has another owner
local ACTIVE, STOPPED, PAUSED = '0', '1', '2'
local what, name, who = ARGV[3], ARGV[4], ARGV[8]
local found = call('HMGET', KEYS[2], 'o', 's', 'n', 'b', 'l', 'x')
local owner, state = found[1], found[2]
if owner and owner ~= ARGV[5] then
  return {AGAIN, sequence}
end

local function change(...)
  advance()
  call('HSET', KEYS[2], ...)
  act(KEYS[7], KEYS[8], ARGV[6], ARGV[7])
end

if what == 'set_limit' then
  local asked, by_admin, asks = tonumber(ARGV[9]), ARGV[10] == '1', ARGV[11]
  if owner and owner ~= '' and owner ~= asks and not by_admin then
    return {UNKNOWN, sequence}
  end
  local gets = (not owner or not by_admin) and asks or owner
  if owner ~= gets then
    local second = math.floor(now / 1000)
    advance()
    call('HSET', KEYS[2], 'o', gets)
    if not owner then
      call('HSET', KEYS[2], 'f', now, 't', now, 's', ACTIVE, 'p', '0', 'i', '0')
      call('ZADD', KEYS[3], second, name)
    else
      second = call('ZSCORE', KEYS[3], name)
      call('ZREM', KEYS[4], name)
    end
    call('ZADD', KEYS[5], second, name)
  end
  local before = tonumber(found[5])
  local limit, raised = asked, '1'
  if not by_admin then
    limit, raised = before and math.min(before, asked) or asked, found[6] or '0'
  end
  if limit ~= before or raised ~= (found[6] or '0') then
    change('l', limit, 'x', raised)
    if by_admin then
      call('HINCRBY', KEYS[1], 'raises', 1)
    end
  end
  return {DONE, sequence}
end

if not owner then
  return {UNKNOWN, sequence}
end
if what == 'stop' then
  if state ~= STOPPED then
    change('s', STOPPED, 'n', '', 'b', '')
    call('ZREM', KEYS[6], name)
  end
elseif what == 'pause' then
  if state ~= STOPPED and not (state == PAUSED and found[3] == '' and found[4] == who) then
    change('s', PAUSED, 'n', '', 'b', who)
  end
elseif state == PAUSED and (found[3] == '' or found[3] == (meta[3] or '0')) then
  change('s', ACTIVE, 'n', '', 'b', '')
end
return {DONE, sequence}
