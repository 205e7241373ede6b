--- What a live session says of itself: counts, and how long things took, as distributions that take no more memory the
--- longer it goes on.

local M = {}

local WIDTH, MOST = 0.002, 10 -- seconds: a distribution's steps, and where it ends

--- @class Distribution
local Distribution = {}
Distribution.__index = Distribution

function Distribution:add(seconds)
  local at = math.floor(math.max(0, math.min(seconds, MOST)) / WIDTH)
  self.counts[at] = (self.counts[at] or 0) + 1
  self.n, self.sum, self.most = self.n + 1, self.sum + seconds, math.max(self.most, seconds)
end

--- The value below which a share of all lies, to WIDTH.
--- @param share number 0 to 1
--- @return number? seconds; nil: there was none
function Distribution:quantile(share)
  local left = share * self.n
  if self.n == 0 then return nil end
  for at = 0, MOST / WIDTH do
    left = left - (self.counts[at] or 0)
    if left <= 1e-9 then return math.min((at + 1) * WIDTH, self.most) end
  end
  return self.most
end

--- @class LiveMetrics
--- @field counts table<string, integer>
local Metrics = {}
Metrics.__index = Metrics

-- In the order in which they are told. COUNTS: {name, what}; TIMES the same.
M.counts = {
  { 'frames', 'frames shown' },
  { 'speaking', 'frames with a mouth made anew' },
  { 'held', 'frames whose mouth was not made in time: the last one was held' },
  { 'windows', 'windows made' },
  { 'short', 'windows made with fewer steps, to be in time' },
  { 'skipped', 'windows that were not made, since all of their frames were due already' },
  { 'torn', 'frames of silence in the midst of speech, since its sound came late' },
  { 'left', 'frames of silence that were left out, to catch up' },
  { 'flushes', 'times that all that waited was dropped' },
  { 'stalls', 'times that whoever takes the video was waited for, for more than three seconds' },
}
M.times = {
  { 'latency', 'from a sample that comes in to its frame, encoded, with its sound' },
  { 'buffer', 'from the first sample of a window until the window is begun' },
  { 'hear', 'audio tokens' },
  { 'denoise', 'steps' },
  { 'decode', 'latents to faces' },
  { 'early', 'from a window that is made until its first frame is due' },
  { 'encode', 'from a frame that is due until it is pasted, encoded and handed on' },
  { 'flush', 'from a flush until the first frame without what was dropped' },
}

--- @return LiveMetrics
function M.new()
  local self = setmetatable({ values = {}, times = {}, steps = 0 }, Metrics)
  for _, row in ipairs(M.counts) do self.values[row[1]] = 0 end
  for _, row in ipairs(M.times) do self.times[row[1]] = setmetatable({ counts = {}, n = 0, sum = 0, most = 0 }, Distribution) end
  return self
end

--- Counts one more, or n.
function Metrics:count(name, n) self.values[name] = self.values[name] + (n or 1) end

--- Notes how long something took.
function Metrics:time(name, seconds) self.times[name]:add(seconds) end

--- A window was made by so many steps.
function Metrics:made(steps)
  self:count 'windows'
  self.steps = self.steps + steps
end

--- All of it, for JSON: counts by name, and of times {n, mean, p50, p99, most} in seconds.
--- @return table
function Metrics:report()
  local out = { steps_mean = self.values.windows > 0 and self.steps / self.values.windows or nil, seconds = {} }
  for name, value in pairs(self.values) do out[name] = value end
  for name, d in pairs(self.times) do
    if d.n > 0 then
      out.seconds[name] = { n = d.n, mean = d.sum / d.n, p50 = d:quantile(0.5), p99 = d:quantile(0.99), most = d.most }
    end
  end
  return out
end

--- The same for people: a line each.
--- @return string[]
function Metrics:lines()
  local lines = {}
  for _, row in ipairs(M.counts) do
    if self.values[row[1]] > 0 then lines[#lines + 1] = ('%8d  %s'):format(self.values[row[1]], row[2]) end
  end
  for _, row in ipairs(M.times) do
    local d = self.times[row[1]]
    if d.n > 0 then
      lines[#lines + 1] = ('%-8s  median %.3f s, p99 %.3f, most %.3f: %s'):format(row[1], d:quantile(0.5), d:quantile(0.99), d.most,
        row[2])
    end
  end
  return lines
end

return M
