--- Runs a comparison from its cells to its files. Finished cells are kept, the others are generated one after
--- another, and all tables and images are written again.

local axes = require 'models.laboratory.compare.axes'
local cr = require 'cr'
local clock = require 'cr.clock'
local dealers = require 'models.cards.dealer'
local errors = require 'cr.errors'
local cells_of = require 'models.laboratory.compare.cells'
local files = require 'cr.files'
local folders = require 'models.laboratory.compare.folder'
local grid = require 'models.laboratory.compare.grid'
local page = require 'models.laboratory.compare.page'
local plot = require 'models.laboratory.compare.plot'
local sheet = require 'models.laboratory.compare.sheet'
local tables = require 'models.laboratory.compare.table'

local compare = {}

--- @class Comparison
--- @field cells table[] in the order in which they are run
--- @field folder ComparisonFolder
local Comparison = {}
Comparison.__index = Comparison

--- Creates a comparison in a folder.
--- @param folder ComparisonFolder
--- @param cells table[] from grid.cells
--- @param o table {video, audio, checkpoint, vae, device, devices (several GPUs, the first is `device`), dtypes, start, duration
---   (seconds), points (a file), mask, silence, rng, seed (of the conditioning), whole = boolean (each cell is a run of its own),
---   published = boolean (use the published table's columns), syncnet, s3fd, judge = false: skip SyncNet, quiet, title, subtitle}
--- @return Comparison
function compare.new(folder, cells, o)
  o.devices = o.devices or { o.device }
  local self = setmetatable({ folder = folder, cells = cells, o = o, written = -math.huge, cost = 0 }, Comparison)
  grid.label(cells)
  for _, cell in ipairs(cells) do cell.result = folder:result(cell) end
  return self
end

--- The unfinished cells.
function Comparison:pending()
  local list = {}
  for _, cell in ipairs(self.cells) do
    if not cell.result then list[#list + 1] = cell end
  end
  return list
end

-- An error as text.
local function text_of(problem) return tostring(errors.is_failure(problem) and problem.message or problem) end

-- ---- judging -------------------------------------------------------------------------------------

-- The SyncNet that evaluates lips, or nil. If weights were requested explicitly, it is an error if they are unusable;
-- otherwise the reason is printed and the evaluation is skipped.
local function judge_of(o)
  if o.judge == false then return nil end
  local evaluate = require 'models.laboratory.evaluate'
  local identity = folders.identity(o.syncnet or evaluate.own_syncnet())
  if not identity then return nil end
  local ok, judge = pcall(evaluate.open, { syncnet = o.syncnet, s3fd = o.s3fd, device = o.device })
  if ok then
    judge:free()
    return { syncnet = o.syncnet, s3fd = o.s3fd, device = o.device, with = identity .. (o.s3fd and ', S3FD' or '') }
  end
  if o.syncnet or o.s3fd then error(judge, 0) end
  if not o.quiet then io.stderr:write('lips are not evaluated: ', text_of(judge), '\n') end
end

-- Evaluates a finished cell: confidence and offset, or the reason why they cannot be determined.
function Comparison:judge(cell, judge, device)
  local result = cell.result
  if not judge or not result or result.judged and result.judged.with == judge.with then return end
  local ok, found = pcall(require 'models.laboratory.evaluate'.run, self.folder:file(cell, 'clip.mp4'),
    { syncnet = judge.syncnet, s3fd = judge.s3fd, device = device or judge.device })
  if cr.interrupted() then error(found, 0) end
  result.judged = { with = judge.with }
  if ok then
    result.judged.confidence, result.judged.offset = found.confidence, found.offset
  else
    result.judged.reason = text_of(found)
  end
  self.folder:finish(cell, result)
end

-- ---- output -----------------------------------------------------------------------------

local function as_json(self)
  local list = {}
  for i, cell in ipairs(self.cells) do
    local entry = {
      id = cell.id, label = cell.label, is_reference = cell.is_reference or false, reference = cell.reference,
      finished = cell.result ~= nil, problem = cell.problem, clip = cell.result and ('cells/%s/clip.mp4'):format(cell.id) or nil,
    }
    for _, axis in ipairs(axes.list) do entry[axis.name] = cell[axis.name] end
    for key, value in pairs(cell.result or {}) do entry[key] = value end
    list[i] = entry
  end
  return require 'cr.json'.encode({ settings = self.folder.settings, cells = list, crescent = cr.version }, true) .. '\n'
end

-- Cells that have something to show, in the order of the axes.
function Comparison:shown()
  local list = {}
  for _, cell in ipairs(self.cells) do
    if cell.result or cell.problem then list[#list + 1] = cell end
  end
  return list
end

-- Tables are small and written after every cell, so that they survive an interruption.
function Comparison:write_tables()
  local path, shown = self.folder.path, self:shown()
  files.write(path .. '/results.json', as_json(self))
  files.write(path .. '/results.csv', tables.csv(shown))
  files.write(path .. '/results.md', tables.markdown(shown, self.o))
end

-- Writes plots, contact sheet and page, which contain every clip.
function Comparison:write_pictures()
  local begin, path, shown = clock(), self.folder.path, self:shown()
  local columns = tables.columns(shown, self.o)
  local svgs = {}
  for _, against in ipairs { 'steps', 'time' } do
    local svg = plot.svg(shown, against)
    svgs[against] = svg
    if svg then files.write(('%s/quality_%s.svg'):format(path, against), svg) end
  end
  local rows = {}
  for _, cell in ipairs(shown) do
    if cell.result then
      local head, rest = cell.label:match '^([^,]*), (.*)$'
      local notes = { rest, cell.is_reference and 'reference' or page.figures(cell, columns, page.QUALITY),
        page.figures(cell, columns, page.COST) }
      local lines = {}
      for i = 1, 3 do if notes[i] and notes[i] ~= '' then lines[#lines + 1] = notes[i] end end
      rows[#rows + 1] = {
        label = head or cell.label, notes = lines, strip = self.folder:file(cell, 'strip.png'), frames = cell.result.frames,
      }
    end
  end
  local fine = false -- whether differences are too fine for small images
  for _, cell in ipairs(shown) do fine = fine or cell.upscale ~= 'none' end
  sheet.write(path .. '/contact.png', rows, self.o.title, self.o.subtitle, fine)
  files.write(path .. '/index.html', page.html(self.folder, shown, {
    title = self.o.title, subtitle = self.o.subtitle, columns = columns, svgs = svgs, sheet = path .. '/contact.png',
  }))
  self.written, self.cost = clock(), clock() - begin
end

-- ---- running --------------------------------------------------------------------------------------

-- The reason why a cell's lips cannot be evaluated, for the end of its line. A reason that holds for every cell, such
-- as a short clip, is printed only for the first.
function Comparison:unjudged(cell)
  local reason = cell.result and cell.result.judged and cell.result.judged.reason
  if not reason then return '' end
  local clip = self.folder:file(cell, 'clip.mp4') .. ': '
  if reason:sub(1, #clip) == clip then reason = reason:sub(#clip + 1) end
  self.told = self.told or {}
  if self.told[reason] then return '' end
  self.told[reason] = true
  return '; not judged: ' .. reason
end

-- Whether a GPU can still be used after an error. Running out of memory concerns only the cell, as on one GPU.
local function survived(_, maker) return maker.device == 'cpu' or (pcall(cr.cuda.info, maker.device)) end

-- Runs one cell on a device, by make(cell, maker). Errors are reported and do not stop the other cells.
function Comparison:make(cell, place, count, judge, make, maker)
  local progress, begin = self.progress, clock()
  local name = ('%d/%d %s'):format(place, count, cell.label)
  progress:draw(name)
  local ok, result = pcall(make, cell, maker)
  if cr.interrupted() or not ok and #self.o.devices > 1 and not survived(result, maker) then error(result, 0) end
  progress:clear()
  if ok then
    cell.result = result
    self.folder:finish(cell, result)
    if judge then
      progress:draw(name .. ': SyncNet')
      self:judge(cell, judge, maker.device)
      progress:clear()
    end
  else
    cell.problem = text_of(result)
  end
  if not self.o.quiet then
    io.stderr:write(name, ': ', cell.problem or ('%.1f s'):format(clock() - begin), self:unjudged(cell), '\n')
  end
  self:write_tables()
  -- Rarely enough to cost little compared with the cells.
  if #self:pending() > 0 and cell.result and clock() - self.written > 20 * self.cost then self:write_pictures() end
end

-- Deals cells to free devices. A cell starts only when its reference is finished.
function Comparison:deal(cells, done, judge, make, makers)
  local known, begun = {}, done
  for _, cell in ipairs(self.cells) do known[cell.id] = cell end
  local dealer = dealers.new {
    makers = makers, what = 'cells', survived = survived, note = function(text) self.progress:note(text, true) end,
    make = function(maker, cell)
      begun = begun + 1
      self:make(cell, begun, #self.cells, judge, make, maker)
      return {}
    end,
  }
  local function finished(cell) return cell == nil or cell.result or cell.problem end
  local tasks = {
    function()
      for _, cell in ipairs(cells) do
        while not finished(known[cell.reference]) do cr.sleep(0.01) end
        dealer:deal(cell)
      end
      dealer:ended()
    end,
    function()
      for ticket in function() return dealer:next() end do dealer:collect(ticket, function() end) end
      dealer:close()
    end,
  }
  for _, maker in ipairs(makers) do tasks[#tasks + 1] = function() dealer:work(maker) end end
  cr.all(tasks)
  return done + #cells
end

-- On a GPU, the first run of each shape searches for algorithms. This time must not count for any cell.
local function warm(run, cell, warmed, folder, progress)
  if run.model.device == 'cpu' then return end
  local key = axes.key(cell, 'sample', { scheduler = true, steps = true, seed = true }) .. ' ' .. cell.upscale
  if warmed[key] then return end
  local everything = not next(warmed)
  warmed[key] = true
  local w
  for i, window in ipairs(run.windows) do if window.made and not w then w = i end end
  cr.scope(function()
    if cell.upscale ~= 'none' then folder:begin(cell) end
    local asked = axes.settings(cell, 'sample')
    asked.scheduler, asked.steps, asked.strength = 'ddim', everything and 1 or 4, nil
    asked.windows, asked.quiet = not everything and w or nil, true
    local sample = run:sample(asked)
    if everything then
      for _, i in ipairs { w, #run.windows } do
        local places = {}
        for k = 1, run.windows[i].made and run.windows[i].n or 0 do places[k] = { i, k } end
        if #places > 0 then sample:faces(places) end
      end
    end
    if cell.upscale ~= 'none' then
      sample:save(folder:file(cell, 'clip.mp4'), { quiet = true, stages = { cells_of.upscaler(cell, run, progress) } })
    end
    for _, x in ipairs(sample.latents) do if x then x:free() end end
    run.last = nil
  end)
end

-- The resources of a device for a piece: `run`, of the model that is loaded there, or nil.
local Place = {}
Place.__index = Place

-- Frees a device's resources; `run` is the piece's own.
function Place:leave(run)
  if self.run and self.run ~= run then self.run:free() end
  self.run, self.loaded = nil, nil
end

-- Runs the cells of one piece: computes conditioning once, with the most exact model, then runs model by model.
function Comparison:make_piece(pending, done, judge)
  local o, latentsync, piece = self.o, require 'models.latentsync', axes.settings(pending[1], 'piece')
  local exact = grid.exact_dtype(o.dtypes)
  local function load(cell, device)
    local dtype, quant = grid.precision(cell.dtype)
    local model = axes.settings(cell, 'model')
    return self.progress:measure(('load %s'):format(cell.dtype), 0, latentsync.load, o.checkpoint, {
      device = device, dtype = dtype, quant = quant or model.quant, card = model.card, vae = piece.vae or o.vae,
      size = piece.size,
    })
  end
  local function model_of(cell) return axes.key(cell, 'model') end
  local plain = { dtype = exact }
  for _, axis in ipairs(axes.list) do
    -- Cells have such a field only if the axis was requested.
    if axis.part == 'model' and axis.name ~= 'dtype' and pending[1][axis.name] ~= nil then plain[axis.name] = axis.plain end
  end
  self.progress:clear()
  local asked = {
    video = o.video, audio = o.audio, checkpoint = load(plain, o.device), device = o.device, quiet = o.quiet, start = o.start,
    duration = o.duration, seed = o.seed, rng = o.rng, points = o.points, mask = o.mask, match_colour = o.match_colour,
    silence = o.silence,
  }
  for name, value in pairs(piece) do asked[name] = value end
  local run = latentsync.session(asked)
  if not self.expected then
    local steps, of_references = 0, 0
    for _, cell in ipairs(self:pending()) do
      steps = steps + cell.calls * #run.windows
      if cell.is_reference then of_references = of_references + cell.calls * #run.windows end
    end
    if of_references > steps / 2 then
      self.progress:note(('references take %d of %d network calls: --reference ddim:30 takes fewer, --reference none takes none')
        :format(of_references, steps))
    end
    self.progress:expect(steps)
    self.expected = true
  end
  local makers = {}
  for i, device in ipairs(o.devices) do
    local place = setmetatable({ warmed = {}, mouth = require 'models.latentsync.metrics'.mouth(run.mask, device) }, Place)
    if i == 1 then place.run, place.loaded = run, model_of(plain) end
    makers[i] = { device = device, model = place, place = place }
  end
  local function make(cell, maker)
    local place = maker.place
    if place.loaded ~= model_of(cell) then
      -- Only one model is loaded at a time, so that a cell's memory is its own.
      if place.run == run then run.model = nil end
      place:leave(run)
      collectgarbage()
      collectgarbage()
      cr.trim(maker.device)
      place.run, place.loaded, place.warmed = run:on(load(cell, maker.device)), model_of(cell), {}
    end
    warm(place.run, cell, place.warmed, self.folder, self.progress)
    return cr.scope(cells_of.make, cell, place.run, self.folder, place.mouth, self.progress)
  end
  local ok, made = pcall(self.deal, self, pending, done, judge, make, makers)
  for _, maker in ipairs(makers) do
    maker.place:leave(run)
    maker.place.mouth:free()
  end
  run:free()
  if not ok then error(made, 0) end
  return made
end

--- Runs the unfinished cells and writes the files.
--- @return integer number of failed cells
--- @return string? error of the first one
function Comparison:run()
  local o, pending = self.o, self:pending()
  local judge = judge_of(o) -- first, so that an unusable SyncNet is reported before anything runs
  self.progress = require 'cr.tools.progress'.new { quiet = o.quiet, unit = 'steps' }
  local done = #self.cells - #pending
  if done > 0 and not o.quiet then
    io.stderr:write(('%d of %d cells are already finished in %s\n'):format(done, #self.cells, self.folder.path))
  end
  local made = done
  local ok, err = pcall(function()
    for _, cell in ipairs(self.cells) do
      if judge and cell.result then self.progress:draw('SyncNet: ' .. cell.label) end
      self:judge(cell, judge)
    end
    if o.whole then
      local total, makers, whole = 0, {}, require 'models.laboratory.compare.whole'
      for _, cell in ipairs(pending) do total = total + cell.calls end
      self.progress:expect(total)
      for i, device in ipairs(o.devices) do
        makers[i] = { device = device, model = {}, warmed = {}, o = setmetatable({ device = device }, { __index = o }) }
      end
      made = self:deal(pending, made, judge, function(cell, maker)
        local shape = cell.size .. cell.dtype
        if maker.device ~= 'cpu' and not maker.warmed[shape] then
          whole.warm(cell, self.folder, maker.o)
          maker.warmed[shape] = true
        end
        local result = whole.make(cell, self.folder, maker.o)
        self.progress:advance(cell.calls)
        return result
      end, makers)
    else
      local i = 1
      while i <= #pending do
        local list, piece = {}, axes.key(pending[i], 'piece')
        while pending[i] and axes.key(pending[i], 'piece') == piece do
          list[#list + 1] = pending[i]
          i = i + 1
        end
        made = self:make_piece(list, made, judge)
      end
    end
  end)
  self.progress:clear()
  if not ok then
    if cr.interrupted() then pcall(self.write_tables, self) end -- the tables may lack the last cell
    if cr.interrupted() and not o.quiet then
      io.stderr:write(('%d of %d cells are finished in %s: run the same command to continue\n'):format(
        #self.cells - #self:pending(), #self.cells, self.folder.path))
    end
    error(err, 0)
  end
  self:write_tables()
  local failed, problem = 0, nil
  for _, cell in ipairs(self.cells) do
    if cell.problem then
      failed, problem = failed + 1, problem or ('%s: %s'):format(cell.label, cell.problem)
    end
  end
  if failed < #self.cells then self:write_pictures() end
  return failed, problem
end

--- The table for a terminal.
function Comparison:table() return tables.plain(self:shown(), self.o) end

return compare
