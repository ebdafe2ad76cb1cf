-- One bucket of the region's limits. `ledger.rs` is the same in Rust and says why each step is as it is.
-- KEYS: bucket, sentinel (in the same slot).
-- ARGV: capacity, units per µs (-1: back on release, 0: never), want, give back, outstanding, life in µs, generation,
--       spent alone, credited when last heard, floor, floor complete up to (µs), vouched from (µs), not after (µs), edge.
local LONG_SPAN, BACKWARD, JUMP, RELEASE_LEARNING, EPSILON = 60000000, 1000000, 50000, 3000000, 1e-6
local CLOCKS_DIFFER = 5000000
local function exact(x) return string.format('%.17g', x) end
local function whole(x) return string.format('%.0f', x) end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local capacity, per_us = tonumber(ARGV[1]), tonumber(ARGV[2])
local want, back, outstanding, life = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local spent, heard_credited = tonumber(ARGV[8]), tonumber(ARGV[9])
local floor, floor_as_of = tonumber(ARGV[10]), tonumber(ARGV[11])
local from, edge = tonumber(ARGV[12]), ARGV[14]
local seen = math.min(now, tonumber(ARGV[13]))
local on_release, never = per_us < 0, per_us == 0

-- When this data began, and since when the edges together vouch for the clock.
local s = redis.call('HMGET', KEYS[2], 'run', 'born', 'from', 'to')
local born, vouched_from, vouched_to = tonumber(s[2]), tonumber(s[3]), tonumber(s[4])
local is_new = s[1] ~= run
if is_new then born, vouched_from, vouched_to = now, now, now end
local set_back = from <= seen and vouched_to > seen + BACKWARD
if from <= vouched_to and not set_back then
  vouched_to = math.max(vouched_to, seen)
  from = math.min(from, vouched_from)
elseif set_back or seen - from >= LONG_SPAN then
  vouched_from, vouched_to = from, seen
end
redis.call('HSET', KEYS[2], 'run', run, 'born', whole(born), 'from', whole(vouched_from), 'to', whole(vouched_to))
local generation = run .. ':' .. whole(born)

-- The bucket; one that is not known counts as empty when the data began.
local b, held = {}, {}
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  local name, value = flat[i], flat[i + 1]
  if string.sub(name, 1, 2) == 'e:' then
    local units, till = string.match(value, '^(%S+) (%S+)$')
    held[string.sub(name, 3)] = { tonumber(units), tonumber(till) }
  else
    b[name] = value
  end
end
local fresh = b.generation ~= generation
if fresh then
  held = {}
  b = { at = born, heard = born, age = 0, debt = capacity, credited = 0, closed = never and 1 or 0,
    gone_since = born }
end
local at, heard, age = tonumber(b.at), tonumber(b.heard), tonumber(b.age)
local debt, credited, closed = tonumber(b.debt), tonumber(b.credited), tonumber(b.closed) == 1
local gone, gone_since = tonumber(b.gone or 0), tonumber(b.gone_since or now)
local function out()
  local sum = 0
  for _, h in pairs(held) do sum = sum + h[1] end
  return sum
end

-- Time passes.
local elapsed = math.max(0, seen - math.max(at, from))
if heard - at > JUMP then elapsed = math.min(elapsed, math.max(0, now - heard)) end
heard = now
if at > now + BACKWARD then at = now else at = math.max(at, seen) end
age = age + elapsed
for name, h in pairs(held) do
  if h[2] <= age then held[name], gone = nil, gone + h[1] end
end
local before = debt
if on_release then debt = out()
elseif not never then debt = math.max(out(), debt - elapsed * per_us) end
credited = credited + math.max(0, before - debt)

-- The edge settles: gives back, still holds, has spent alone.
local known = held[edge] and held[edge][1] or 0
local same = ARGV[7] == generation
if not same then
  back = 0
  if not on_release then outstanding = 0 end
else
  back = math.min(back, known)
  if not on_release then outstanding = math.min(outstanding, known - back) end
  debt = debt + math.min(spent, math.max(0, credited - heard_credited))
end
debt = debt - back
gone = gone + math.max(0, known - back - outstanding)
held[edge] = outstanding > 0 and { outstanding, age + life } or nil
if closed and floor_as_of >= born + CLOCKS_DIFFER then
  closed, debt = false, out()
end
if never then debt = math.max(debt, floor, closed and capacity or 0) end
if on_release then debt = out() end
if never and not closed and floor_as_of >= gone_since + CLOCKS_DIFFER then
  debt, gone, gone_since = math.min(debt, floor + gone + out()), 0, now
end

-- And is granted what there is.
local left = math.max(0, math.floor(capacity - debt + EPSILON))
if on_release and now - born < RELEASE_LEARNING then left = 0 end
local granted = math.min(want, left)
debt = debt + granted
if outstanding + granted > 0 then held[edge] = { outstanding + granted, age + life } end

local write = { 'generation', generation, 'at', whole(at), 'heard', whole(heard), 'age', whole(age),
  'debt', exact(debt), 'credited', exact(credited), 'closed', closed and '1' or '0',
  'gone', exact(gone), 'gone_since', whole(gone_since) }
for name, h in pairs(held) do
  write[#write + 1] = 'e:' .. name
  write[#write + 1] = exact(h[1]) .. ' ' .. whole(h[2])
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(write))
-- Kept until it must be full again, and a window more; money until well after its month.
local ttl = 120000 + life / 1000
if never then ttl = 3456000000 elseif not on_release then ttl = ttl + debt / per_us / 1000 end
redis.call('PEXPIRE', KEYS[1], whole(math.min(ttl, 3456000000)))
return { whole(granted), exact(capacity - debt), whole(now), generation, exact(credited), run }
