--- Metrics of a live session: counters, and durations as histograms, whose memory does not grow with time.

local M = {}

local WIDTH, MOST = 0.002, 10 -- seconds: width of a histogram's bins, and its upper end

--- @class Distribution
local Distribution = {}
Distribution.__index = Distribution

function Distribution:add(seconds)
  local at = math.floor(math.max(0, math.min(seconds, MOST)) / WIDTH)
  self.counts[at] = (self.counts[at] or 0) + 1
  self.n, self.sum, self.most = self.n + 1, self.sum + seconds, math.max(self.most, seconds)
end

--- The quantile of a histogram, to within WIDTH.
--- @param share number 0 to 1
--- @return number? seconds; nil without data
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

-- Rows {name, description} in the order of the report.
M.counts = {
  { 'frames', 'frames shown' },
  { 'speaking', 'frames with a generated mouth' },
  { 'held', 'frames whose mouth was not ready in time, so the previous one was held' },
  { 'windows', 'windows made' },
  { 'short', 'windows sampled with fewer steps, to be in time' },
  { 'skipped', 'windows that were not generated, because all of their frames were due already' },
  { 'torn', 'frames of silence within speech, because its sound came late' },
  { 'left', 'frames of silence that were skipped, to catch up' },
  { 'flushes', 'flushes: all waiting sound was dropped' },
  { 'stalls', 'times that the receiver of the video was more than three seconds late' },
}
M.times = {
  { 'latency', 'from the arrival of a sample to its encoded frame' },
  { 'buffer', 'from the first sample of a window to the start of its sampling' },
  { 'hear', 'audio tokens' },
  { 'denoise', 'steps' },
  { 'decode', 'decoding latents to faces' },
  { 'early', 'from a finished window to the time at which its first frame is due' },
  { 'encode', 'from the time at which a frame is due to its pasted and encoded form' },
  { 'flush', 'from a flush to the first frame after it' },
}

--- @return LiveMetrics
function M.new()
  local self = setmetatable({ values = {}, times = {}, steps = 0 }, Metrics)
  for _, row in ipairs(M.counts) do self.values[row[1]] = 0 end
  for _, row in ipairs(M.times) do self.times[row[1]] = setmetatable({ counts = {}, n = 0, sum = 0, most = 0 }, Distribution) end
  return self
end

--- Increments a counter by 1 or by n.
function Metrics:count(name, n) self.values[name] = self.values[name] + (n or 1) end

--- Records a duration.
function Metrics:time(name, seconds) self.times[name]:add(seconds) end

--- Records a window that was sampled with this number of steps.
function Metrics:made(steps)
  self:count 'windows'
  self.steps = self.steps + steps
end

--- All metrics, for JSON: counters by name, and for durations {n, mean, p50, p99, most} in seconds.
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

--- All metrics for people, one line each.
--- @return string[]
function Metrics:lines()
  local lines = {}
  for _, row in ipairs(M.counts) do
    if self.values[row[1]] > 0 then lines[#lines + 1] = ('%8d  %s'):format(self.values[row[1]], row[2]) end
  end
  for _, row in ipairs(M.times) do
    local d = self.times[row[1]]
    if d.n > 0 then
      lines[#lines + 1] = ('%-8s  median %.3f s, p99 %.3f, max %.3f: %s'):format(row[1], d:quantile(0.5), d:quantile(0.99), d.most,
        row[2])
    end
  end
  return lines
end

return M
