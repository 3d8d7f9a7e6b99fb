-- Reserve, where no plan fits: what is told, whether the run pauses, what the ring keeps.

if not held then
  advance()
  local pauses, blocked, blocking_lines, told, told_lines, named = false, {}, {}, {}, {}, {}
  local function tell(text, at_line, line)
    local account, aging = line.account, {}
    if account.at then
      for index = account.o, account.at do
        local committed = bucket_of(account, index)[1]
        if committed > 0 then
          aging[#aging + 1] = (index + BUCKETS) * line[BUCKET]
          aging[#aging + 1] = committed
        end
      end
    end
    return {text, at_line, line.limit, account.c, account.r, account.u, aging}
  end
  for number, plan in ipairs(plans) do
    local text, at_line = plan[1], blocking[number]
    local lines = met[text]
    blocked[number] = tell(text, at_line, lines[at_line])
    blocking_lines[number] = {text, at_line, lines[at_line]}
    pauses = pauses or lines[at_line][PAUSE]
    for each, line in ipairs(lines) do
      if not named[line.account] then
        named[line.account] = true
        told[#told + 1] = tell(text, each, line)
        told_lines[#told_lines + 1] = {text, each, line}
      end
    end
  end
  pauses = pauses and not caller[ISSUED]
  if not caller[ISSUED] then
    claim()
    if pauses then
      run.s, run.n, run.b = PAUSED, raises, ''
    end
    store_run(run)
  end
  remember('ceiling_reached', told_lines, blocking_lines)
  return {REFUSED, sequence, now, pauses and 1 or 0, blocked, told}
end

