--- How what a worker has made becomes a job's result: by one rename of the worker's folder, DATA/work/ID.ATTEMPT, to
--- DATA/jobs/ID. Until then there is none, and after it there is all of it.

local disk = require 'cr.serve.disk'
local json = require 'cr.json'
local problems = require 'cr.serve.problem'
local read_file = require 'cr.files'.read

local M = {}

local TYPES = { mp4 = 'video/mp4', mkv = 'video/x-matroska', png = 'image/png' }

--- Where an attempt's worker writes.
function M.work_folder(folder, job) return ('%s/work/%s.%d'):format(folder, job.id, job.attempts) end

--- Where a finished job's results are.
function M.folder(folder, job) return folder .. '/jobs/' .. job.id end

-- Puts the results in their place.
local function deliver(folder, job, done)
  local from, to = M.work_folder(folder, job), M.folder(folder, job)
  disk.sync(from)
  disk.remove(to) -- of an attempt that was cut off before it could say so
  disk.rename(from, to)
  if done.result then
    local r = done.result
    r.bytes, r.type = require 'lfs'.attributes(to .. '/' .. r.file, 'size'), TYPES[r.file:match '%.(%w+)$']
  end
  job.result, job.people = done.result, done.people
end

--- What a worker's last message makes of a job; what is done is delivered. Inside of a task.
--- @param folder string the server's
--- @param job table
--- @param task table {late, cancelled}, as the worker was given it
--- @param m table the message (models/service/worker.lua), or {crashed = sentence}
--- @param limits table {job_timeout}
--- @param in_words fun(text: string): string makes a sentence of the engine's one for people
--- @return string state
--- @return Problem? problem of one that failed
--- @return string? kind of the problem
function M.outcome(folder, job, task, m, limits, in_words)
  if m.done and not task.cancelled then
    local ok, problem = pcall(deliver, folder, job, m.done)
    if ok then return 'done' end
    return 'failed', problems.new(500, 'the result could not be put in its place: ' .. in_words(tostring(problem))), 'delivery'
  elseif task.late then
    local detail = 'the job took longer than %g s, which is the limit here'
    return 'failed', problems.new(422, detail:format(limits.job_timeout)), 'timeout'
  elseif m.cancelled or task.cancelled then
    return 'cancelled'
  elseif m.crashed then
    local detail = m.crashed .. ' while it made this job; it was started anew, and other jobs go on'
    return 'failed', problems.new(500, in_words(detail)), 'crash'
  elseif m.failed.own then
    return 'failed', problems.new(500, "the engine met an error of its own, which is in the server's log"), 'internal'
  end
  return 'failed', problems.new(422, in_words(m.failed.detail)), 'refused'
end

--- A finished job's report, without this machine's paths.
--- @param folder string the server's
--- @param job table
--- @param words Words
--- @return table
function M.report(folder, job, words) return words:all(json.decode(read_file(M.folder(folder, job) .. '/report.json'))) end

return M
