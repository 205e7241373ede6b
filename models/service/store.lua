--- The server's database: uploaded files and jobs, in DATA/state.sqlite.
--
-- A job's row is written completely at each state change, in its own transaction. Invariants: a job is on disk when
-- add_job returns. A state changes only if it is still the state that the caller has seen.

local json = require 'cr.json'
local sqlite = require 'cr.serve.sqlite'

local M = {}

local VERSIONS = {
  'CREATE TABLE files (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, record TEXT NOT NULL)',
  'CREATE TABLE jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, ' ..
    'state TEXT NOT NULL, key TEXT UNIQUE, body TEXT NOT NULL, record TEXT NOT NULL)',
  'CREATE INDEX jobs_by_state ON jobs (state, number)',
}

--- @class Store
local Store = {}
Store.__index = Store

--- @param path string
--- @return Store
function M.open(path) return setmetatable({ db = sqlite.open(path, VERSIONS) }, Store) end

function Store:close() self.db:close() end

-- ---- files -------------------------------------------------------------------------------------------

--- Adds a file {id, name, bytes, type, sha256, created, video, audio, path}.
function Store:add_file(file)
  self.db:transaction(function() self.db:run('INSERT INTO files (id, record) VALUES (?, ?)', file.id, json.encode(file)) end)
end

local function decoded(rows)
  for i, row in ipairs(rows) do rows[i] = json.decode(row.record) end
  return rows
end

--- @return table? file
function Store:file(id) return decoded(self.db:rows('SELECT record FROM files WHERE id = ?', id))[1] end

--- All files, the newest first.
--- @return table[]
function Store:files() return decoded(self.db:rows 'SELECT record FROM files ORDER BY number DESC') end

function Store:drop_file(id)
  self.db:transaction(function() self.db:run('DELETE FROM files WHERE id = ?', id) end)
end

-- ---- jobs --------------------------------------------------------------------------------------------

local function job_of(row)
  if not row then return nil end
  local job = json.decode(row.record)
  job.number, job.id, job.kind, job.state, job.key, job.body = row.number, row.id, row.kind, row.state, row.key, row.body
  return job
end

-- The record contains no field that has a column of its own.
local function record_of(job)
  local record = {}
  for key, value in pairs(job) do record[key] = value end
  for _, key in ipairs { 'number', 'id', 'kind', 'state', 'key', 'body' } do record[key] = nil end
  return json.encode(record)
end

--- Adds a job {id, kind, state, key (for idempotency) or nil, body (the request, as text), ...}, and sets its number.
function Store:add_job(job)
  self.db:transaction(function()
    self.db:run('INSERT INTO jobs (id, kind, state, key, body, record) VALUES (?, ?, ?, ?, ?, ?)', job.id, job.kind, job.state,
      job.key, job.body, record_of(job))
    job.number = self.db:rows('SELECT number FROM jobs WHERE id = ?', job.id)[1].number
  end)
end

--- Writes a job's new state.
--- @param job table
--- @param from string the state before the change
--- @return boolean whether the job still had that state
function Store:change_job(job, from)
  return self.db:transaction(function()
    return self.db:run('UPDATE jobs SET state = ?, record = ? WHERE id = ? AND state = ?', job.state, record_of(job), job.id, from) == 1
  end)
end

--- @return table? job
function Store:job(id) return job_of(self.db:rows('SELECT * FROM jobs WHERE id = ?', id)[1]) end

--- The job of an idempotency key.
--- @return table? job
function Store:job_by_key(key) return job_of(self.db:rows('SELECT * FROM jobs WHERE key = ?', key)[1]) end

--- Jobs, the newest first.
--- @param o table {state =, kind =, limit =, after = id}
--- @return table[]
function Store:jobs(o)
  local before = o.after and (self:job(o.after) or { number = 0 }).number or 2 ^ 53
  local rows = self.db:rows('SELECT * FROM jobs WHERE number < ? AND (? IS NULL OR state = ?) AND (? IS NULL OR kind = ?) ' ..
    'ORDER BY number DESC LIMIT ?', before, o.state, o.state, o.kind, o.kind, o.limit)
  for i, row in ipairs(rows) do rows[i] = job_of(row) end
  return rows
end

--- Jobs that have not ended, in the order in which they came.
--- @return table[]
function Store:unfinished()
  local rows = self.db:rows "SELECT * FROM jobs WHERE state IN ('queued', 'running') ORDER BY number"
  for i, row in ipairs(rows) do rows[i] = job_of(row) end
  return rows
end

--- Jobs that ended before a time, and files that were created before it and that no remaining job names.
--- @param time string as models/service/names.lua writes it
--- @return string[] jobs their ids
--- @return string[] files
function Store:older(time)
  local function ids(...)
    local rows = self.db:rows(...)
    for i, row in ipairs(rows) do rows[i] = row.id end
    return rows
  end
  local ended = "jobs.state NOT IN ('queued', 'running') AND json_extract(jobs.record, '$.finished') < ?"
  return ids('SELECT id FROM jobs WHERE ' .. ended, time),
    ids("SELECT id FROM files WHERE json_extract(files.record, '$.created') < ? AND NOT EXISTS (SELECT 1 FROM jobs WHERE NOT (" .. ended ..
      ') AND (instr(jobs.body, files.id) > 0 OR instr(jobs.record, files.id) > 0))', time, time)
end

--- How many jobs are in each state.
--- @return table<string, integer>
function Store:counts()
  local counts = { queued = 0, running = 0, done = 0, failed = 0, cancelled = 0 }
  for _, row in ipairs(self.db:rows 'SELECT state, COUNT(*) AS n FROM jobs GROUP BY state') do counts[row.state] = row.n end
  return counts
end

function Store:drop_job(id)
  self.db:transaction(function() self.db:run('DELETE FROM jobs WHERE id = ?', id) end)
end

return M
