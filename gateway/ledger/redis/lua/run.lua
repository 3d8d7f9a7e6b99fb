-- What people do to a run: its own limit, stop, pause, resume.
--
-- KEYS   1 meta  2 the run  3 runs  4 the runs of the owner it has  5 the runs of the owner it gets  6 that owner's active runs  7 acts
--        8 acts in order
-- ARGV   1 epoch  2 sequence  3 what  4 the run's name  5 the owner it has, as the gateway saw  6 the act's id  7 its text  8 who
--        9 set_limit: the limit  10 by the admin: '1'  11 the owner who asks
-- Reply  {DONE, sequence}  {UNKNOWN, sequence}: no such run, or another's  {AGAIN, sequence}: it has another owner
local ACTIVE, STOPPED, PAUSED = 0, 1, 2
local what, name, who = ARGV[3], ARGV[4], ARGV[8]
local run = run_at(KEYS[2])
local owner, state = run.o, run.s
if owner and owner ~= ARGV[5] then
  return {AGAIN, sequence}
end

local function changed()
  advance()
  store_run(run)
  act(KEYS[7], KEYS[8], ARGV[6], ARGV[7])
end

if what == 'set_limit' then
  local asked, by_admin, asks = tonumber(ARGV[9]), ARGV[10] == '1', ARGV[11]
  if owner and owner ~= '' and owner ~= asks and not by_admin then
    return {UNKNOWN, sequence}
  end
  local gets = (not owner or not by_admin) and asks or owner
  local limit, raised = asked, true
  if not by_admin then
    limit, raised = run.l and math.min(run.l, asked) or asked, run.x
  end
  local limits = limit ~= run.l or raised ~= run.x
  run.l, run.x = limit, raised
  if owner ~= gets then
    local second = math.floor(now / 1000)
    run.o = gets
    if not owner then
      run.f, run.t = now, now
    end
    advance()
    store_run(run)
    if not owner then
      call('ZADD', KEYS[3], second, name)
    else
      second = call('ZSCORE', KEYS[3], name)
      call('ZREM', KEYS[4], name)
    end
    call('ZADD', KEYS[5], second, name)
  end
  if limits then
    raises = raises + (by_admin and 1 or 0)
    changed()
  end
  return {DONE, sequence}
end

if not owner then
  return {UNKNOWN, sequence}
end
if what == 'stop' then
  if state ~= STOPPED then
    run.s, run.n, run.b = STOPPED, NONE, ''
    changed()
    call('ZREM', KEYS[6], name)
  end
elseif what == 'pause' then
  if state ~= STOPPED and not (state == PAUSED and run.n == NONE and run.b == who) then
    run.s, run.n, run.b = PAUSED, NONE, who
    changed()
  end
elseif state == PAUSED and (run.n == NONE or run.n == raises) then
  run.s, run.n, run.b = ACTIVE, NONE, ''
  changed()
end
return {DONE, sequence}
