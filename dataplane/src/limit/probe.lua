-- Says that an edge is there: keeps the sentinel, counts the edges of the region. `ledger.rs` keeps it in Rust.
-- KEYS: sentinel, edges (in the same slot). ARGV: vouched from (µs), not after (µs), edge.
-- Returns: now (µs), run id, edges that were there in the last seconds, whether this one was the only one for minutes.
local LONG_SPAN, BACKWARD = 60000000, 1000000
local GONE_AFTER_S, FORGOTTEN_AFTER_S = 10, 120
local function whole(x) return string.format('%.0f', x) end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local from, seen = tonumber(ARGV[1]), math.min(now, tonumber(ARGV[2]))
local s = redis.call('HMGET', KEYS[1], 'run', 'born', 'from', 'to')
local born, vouched_from, vouched_to = tonumber(s[2]), tonumber(s[3]), tonumber(s[4])
if s[1] ~= run then born, vouched_from, vouched_to = now, now, now end
local set_back = from <= seen and vouched_to > seen + BACKWARD
if from <= vouched_to and not set_back then
  vouched_to = math.max(vouched_to, seen)
elseif set_back or seen - from >= LONG_SPAN then
  vouched_from, vouched_to = from, seen
end
redis.call('HSET', KEYS[1], 'run', run, 'born', whole(born), 'from', whole(vouched_from), 'to', whole(vouched_to))
local second = tonumber(time[1])
redis.call('ZADD', KEYS[2], second, ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', second - FORGOTTEN_AFTER_S)
local there = redis.call('ZCOUNT', KEYS[2], second - GONE_AFTER_S, '+inf')
return { whole(now), run, there, redis.call('ZCARD', KEYS[2]) == 1 }
