"""The Lua script that sets an Idempotency-Key in Redis atomically."""

from __future__ import annotations

REMEMBERED = b"1"
PUT_SCRIPT = """
-- Sets KEYS[1] to ARGV[2] (empty: deletes it) if it is ARGV[1] or absent, or if ARGV[8] is 1; otherwise returns it.
-- KEYS[2] and KEYS[3], an index by time and a count of bytes, bound the keys of a pipeline; KEYS[4]: the caller lives.
if redis.call('EXPIRE', KEYS[4], ARGV[7]) == 0 then
  redis.call('SET', KEYS[4], '0', 'EX', ARGV[7])
end
local current = redis.call('GET', KEYS[1])
if current and current ~= ARGV[1] and ARGV[8] ~= '1' then
  return current
end
local ttl, now = tonumber(ARGV[3]), tonumber(ARGV[4])
local function forget(member)
  local name, length = string.match(member, '^(.*):(%d+)$')
  redis.call('ZREM', KEYS[2], member)
  redis.call('DECRBY', KEYS[3], length)
  return name
end
if current then
  local member = ARGV[9] .. ':' .. #current
  if redis.call('ZSCORE', KEYS[2], member) then
    forget(member)
  end
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ttl)
  redis.call('ZADD', KEYS[2], ARGV[4], ARGV[9] .. ':' .. #ARGV[2])
  redis.call('INCRBY', KEYS[3], #ARGV[2])
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ttl, 'LIMIT', 0, 100)) do
  forget(member)
end
for _ = 1, 1000 do
  if redis.call('ZCARD', KEYS[2]) <= tonumber(ARGV[5])
      and tonumber(redis.call('GET', KEYS[3]) or '0') <= tonumber(ARGV[6]) then
    break
  end
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then
    redis.call('DEL', KEYS[3])
    break
  end
  redis.call('DEL', ARGV[10] .. '/' .. forget(oldest))
end
redis.call('EXPIRE', KEYS[2], 2 * ttl)
redis.call('EXPIRE', KEYS[3], 2 * ttl)
return false
"""
