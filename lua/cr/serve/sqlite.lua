--- A durable SQLite database: when a transaction returns, its changes are on the disk.
--
--     local db = sqlite.open('DIR/state.sqlite', { [[CREATE TABLE jobs (id TEXT PRIMARY KEY, record TEXT NOT NULL)]] })
--     db:transaction(function() db:run('INSERT INTO jobs VALUES (?, ?)', id, text) end)
--     for _, row in ipairs(db:rows('SELECT record FROM jobs WHERE id = ?', id)) do print(row.record) end
--
-- It uses LuaDBI (lua-dbi-sqlite3) with prepared statements only, so no value is ever part of SQL text. The
-- write-ahead log is synced at each transaction (synchronous=FULL). One process holds the database exclusively; a
-- second one gets an error. Values are numbers, strings without NULs, and nil.

local errors = require 'cr.errors'

local M = {}

--- @class Database
--- @field connection table
--- @field path string
local Database = {}
Database.__index = Database

local function statement(self, sql)
  local found = self.statements[sql]
  if not found then
    local problem
    found, problem = self.connection:prepare(sql)
    if not found then error(('%s: %s'):format(self.path, tostring(problem)), 0) end
    self.statements[sql] = found
  end
  return found
end

local function execute(self, sql, ...)
  local s = statement(self, sql)
  local ok, result, problem = pcall(s.execute, s, ...)
  if not ok or not result then
    -- The statement would report this error again at its next run.
    self.statements[sql] = nil
    s:close()
    error(('%s: %s'):format(self.path, tostring(ok and problem or result)), 0)
  end
  return s
end

--- Runs a statement that returns no rows.
--- @param sql string with a ? for each value
--- @return integer number of changed rows
function Database:run(sql, ...) return execute(self, sql, ...):affected() end

--- Returns the rows of a query, with values by the columns' names.
--- @param sql string
--- @return table[]
function Database:rows(sql, ...)
  local list = {}
  for row in execute(self, sql, ...):rows(true) do
    local copy = {}
    for name, value in pairs(row) do copy[name] = value end
    list[#list + 1] = copy
  end
  return list
end

--- Runs fn as one atomic transaction and returns its results. fn must not wait.
--- @param fn function
function Database:transaction(fn)
  local function results(ok, ...)
    if not ok then
      self.connection:rollback()
      error((...), 0)
    end
    if not self.connection:commit() then
      self.connection:rollback()
      error(self.path .. ': cannot be written', 0)
    end
    return ...
  end
  return results(pcall(fn))
end

function Database:close()
  for _, s in pairs(self.statements) do s:close() end
  self.statements = {}
  self.connection:close()
end

local function load_dbi()
  local ok, dbi = pcall(require, 'DBI')
  if not ok or not pcall(require, 'dbd.sqlite3') then
    errors.fail 'lua-dbi-sqlite3 is missing: apt-get install lua-dbi-sqlite3'
  end
  return dbi
end

--- Opens a database, and creates it if it does not exist.
--- @param path string
--- @param versions string[] statements that migrate each version of the tables to the next; never change or remove one
--- @return Database
function M.open(path, versions)
  local dbi = load_dbi()
  local connection, problem = dbi.Connect('SQLite3', path)
  if not connection then errors.failf('%s: %s', path, tostring(problem)) end
  local self = setmetatable({ path = path, connection = connection, statements = {} }, Database)
  local ok, why = pcall(function()
    connection:autocommit(true)
    for _, pragma in ipairs { 'locking_mode = EXCLUSIVE', 'journal_mode = WAL', 'synchronous = FULL', 'foreign_keys = ON' } do
      local s = statement(self, 'PRAGMA ' .. pragma)
      execute(self, 'PRAGMA ' .. pragma)
      for _ in s:rows() do end -- luacheck: ignore
    end
    local at = self:rows('PRAGMA user_version')[1].user_version
    if at > #versions then errors.failf('%s was written by a newer version of Crescent: use that version', path) end
    connection:autocommit(false)
    for i = at + 1, #versions do
      self:transaction(function()
        self:run(versions[i])
        self:run(('PRAGMA user_version = %d'):format(i))
      end)
    end
    -- The first write takes the lock.
    self:transaction(function() self:run(('PRAGMA user_version = %d'):format(#versions)) end)
  end)
  if not ok then
    pcall(self.close, self)
    if tostring(why):find 'locked' then errors.failf('%s is in use by another server: choose another --data', path) end
    error(why, 0)
  end
  return self
end

return M
