--- Turns a worker's files into a job's result, by one rename of the worker's folder DATA/work/ID.ATTEMPT to
--- DATA/jobs/ID. Before it there is no result, after it the result is complete.

local disk = require 'cr.serve.disk'
local json = require 'cr.json'
local problems = require 'cr.serve.problem'
local read_file = require 'cr.files'.read

local M = {}

local TYPES = { mp4 = 'video/mp4', mkv = 'video/x-matroska', png = 'image/png' }

--- The folder into which an attempt's worker writes.
function M.work_folder(folder, job) return ('%s/work/%s.%d'):format(folder, job.id, job.attempts) end

--- The folder of a finished job's results.
function M.folder(folder, job) return folder .. '/jobs/' .. job.id end

-- Moves the results into place.
local function deliver(folder, job, done)
  local from, to = M.work_folder(folder, job), M.folder(folder, job)
  disk.sync(from)
  disk.remove(to) -- left by an attempt that was interrupted before its end was recorded
  disk.rename(from, to)
  if done.result then
    local r = done.result
    r.bytes, r.type = require 'lfs'.attributes(to .. '/' .. r.file, 'size'), TYPES[r.file:match '%.(%w+)$']
  end
  job.result, job.people = done.result, done.people
end

--- Interprets a worker's last message, and moves the results into place if the job succeeded. Must be called in a
--- task.
--- @param folder string the server's folder
--- @param job table
--- @param task table {late, cancelled}, as it was given to the worker
--- @param m table the message (models/service/worker.lua), or {crashed = sentence}
--- @param limits table {job_timeout}
--- @param in_words fun(text: string): string rewrites a message of the engine for clients
--- @return string state
--- @return Problem? problem if the job failed
--- @return string? kind of the problem
function M.outcome(folder, job, task, m, limits, in_words)
  if m.done and not task.cancelled then
    local ok, problem = pcall(deliver, folder, job, m.done)
    if ok then return 'done' end
    return 'failed', problems.new(500, 'the result could not be stored: ' .. in_words(tostring(problem))), 'delivery'
  elseif task.late then
    local detail = 'the job took longer than the limit of %g s'
    return 'failed', problems.new(422, detail:format(limits.job_timeout)), 'timeout'
  elseif m.cancelled or task.cancelled then
    return 'cancelled'
  elseif m.crashed then
    local detail = m.crashed .. ' while it worked on this job; it was restarted, and other jobs continue'
    return 'failed', problems.new(500, in_words(detail)), 'crash'
  elseif m.failed.own then
    return 'failed', problems.new(500, "an internal error occurred; see the server's log"), 'internal'
  end
  return 'failed', problems.new(422, in_words(m.failed.detail)), 'refused'
end

--- A finished job's report, without paths of this machine.
--- @param folder string the server's folder
--- @param job table
--- @param words Words
--- @return table
function M.report(folder, job, words) return words:all(json.decode(read_file(M.folder(folder, job) .. '/report.json'))) end

return M
