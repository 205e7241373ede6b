--- What else a word in a request for help may mean: a name of PyTorch, NumPy, diffusers or ComfyUI, a command, a
--- setting of lipsync, a file of one's own.

local base = require 'cr.ffi'

local M = {}

-- Prefixes of other libraries, and ours for the same kind of names. The first that fits counts.
local PREFIXES = {
  { '^torch%.nn%.functional%.', 'nn.' }, { '^torch%.nn%.', 'nn.' }, { '^nn%.functional%.', 'nn.' }, { '^F%.', 'nn.' },
  { '^torch%.Tensor%.', 'x:' }, { '^Tensor%.', 'x:' }, { '^torch%.cuda%.', 'cr.cuda.' }, { '^torch%.fft%.', 'cr.' },
  { '^torch%.linalg%.', 'cr.' }, { '^torch%.special%.', 'cr.' }, { '^torch%.', 'cr.' }, { '^np%.', 'cr.' }, { '^numpy%.', 'cr.' },
}

-- Functions that have another name here and do the same.
local RENAMED = { swish = 'nn.silu', SiLU = 'nn.silu', GELU = 'nn.gelu', savez = 'cr.save', savez_compressed = 'cr.save' }

local FIELDS = {
  shape = 'x.shape: the sizes of a tensor, a list; x:size(d) is one of them', ndim = 'x.ndim: the number of dimensions of a tensor',
  dtype = "x.dtype: the type of a tensor's elements: 'f32', 'f16', 'bf16', 'f64', 'u8', 'i8', 'i16', 'i32', 'i64', 'bool'; x:to converts",
  device = "x.device: where a tensor is: 'cpu', 'cuda:0'; x:to copies",
}

-- Names of settings in LatentSync, diffusers and ComfyUI.
local SETTINGS = {
  guidance_scale = 'guidance', cfg = 'guidance', cfg_scale = 'guidance', guidance_rescale_factor = 'guidance_rescale',
  num_inference_steps = 'steps', inference_steps = 'steps', num_steps = 'steps', set_timesteps = 'steps', sampler = 'scheduler',
  sampler_name = 'scheduler', denoise = 'strength', enable_deepcache = 'cache', num_frames = 'frames_per_window',
  inference_ckpt_path = 'checkpoint', unet_config_path = 'checkpoint', video_path = 'video', audio_path = 'audio', video_out_path = 'out',
}

--- Returns our spelling of a name with another library's prefix: 'torch.randn' is 'cr.randn', 'F.gelu' 'nn.gelu'.
--- @param name string
--- @return string name
--- @return boolean foreign whether it had such a prefix
function M.spelled(name)
  for _, pair in ipairs(PREFIXES) do
    local ours, n = name:gsub(pair[1], pair[2])
    if n > 0 then return ours, true end
  end
  return name, false
end

--- Returns our name of a function or layer that is spelled differently elsewhere: 'LayerNorm' is 'nn.layer_norm'.
--- @param word string a name without a module
--- @param has fun(name: string): boolean whether a name is one of ours
--- @return string?
function M.renamed(word, has)
  if RENAMED[word] then return RENAMED[word] end
  if not word:find '%u' then return nil end
  local layer = 'nn.' .. word:gsub('(%l)(%u)', '%1_%2'):lower()
  return has(layer) and layer or nil
end

--- Returns what to use instead of a name that other libraries have, or nil.
--- @param name string
--- @return string?
function M.absent(name)
  local lacks, word = require 'cr.tensor.absent', name:match '[^.]*$'
  for _, group in ipairs { 'methods', 'functions', 'layers', 'cards' } do
    local instead = lacks[group][word]
    if instead then return ('there is no %s: %s'):format(word, instead) end
  end
end

-- ---- commands and settings --------------------------------------------------------------------------

--- Returns what a command does, the first sentence of its script's first comment, or nil if there is no such command.
--- @param name string
--- @return string?
function M.summary(name)
  local file = name:find '^[%w_-]+$' and io.open(('%s/scripts/%s.lua'):format(base.root, name), 'rb')
  if not file then return nil end
  local words = {}
  for line in file:lines() do
    local text = line:match '^%-%-+%s*(.-)%s*$'
    if not text or text == '' then break end
    words[#words + 1] = text
  end
  file:close()
  local text = table.concat(words, ' ')
  return text:match '^(.-%.)%s' or text
end

local function command(name)
  local summary = M.summary(name)
  return summary and ('crescent %s: a command\n  %s\n  `crescent %s --help` lists its options.'):format(name, summary, name)
end

local function setting(name, rows)
  local wanted = name:gsub('^%-%-', ''):gsub('%-', '_')
  wanted = SETTINGS[wanted] or wanted
  for _, row in ipairs(rows) do
    if row.name == wanted then
      local default = row.default_text and ('\n  default      %s'):format(row.default_text) or ''
      return ('--%s: a setting of lipsync; in a session %s = ...\n  %s%s'):format(wanted:gsub('_', '-'), wanted, row.help, default)
    end
  end
end

--- Returns what a command, a setting or a field of a tensor of this name is, or nil.
--- @param name string 'lipsync', 'guidance', '--guidance-rescale', diffusers' 'num_inference_steps'
--- @param rows table[] the settings, as schema:describe() returns them
--- @return string?
function M.said(name, rows)
  if not name:find '^[%w_-]+$' then return nil end
  local parts = {}
  local function add(text) parts[#parts + 1] = text end -- nil adds nothing
  add(FIELDS[name])
  add(command(name))
  add(setting(name, rows))
  return #parts > 0 and table.concat(parts, '\n\n') or nil
end

-- ---- sampling methods -------------------------------------------------------------------------------

--- Returns the help of a scheduler, whose names only its own file knows, also by its name in other programs.
--- @param name string 'dpmpp_2m_karras', 'DPM++ 2M Karras', 'DPMSolverMultistepScheduler'
--- @return string?
function M.scheduler(name)
  local schedulers = require 'cr.schedulers'
  local found, text = false, nil
  if name:find '^[%w_]+$' then found, text = pcall(schedulers.help, name) end
  if found then return text end
  local ours = schedulers.known_elsewhere(name)
  return ours and ('%s is %s here.\n\n%s'):format(name, ours, schedulers.help(ours)) or nil
end

--- Returns help on an option of schedulers and guidance methods, such as 'sigmas' or 'eta', or nil.
--- @param name string
--- @return string?
function M.option(name)
  local lines = {}
  for kind, module in pairs { schedulers = require 'cr.schedulers', ['guidance methods'] = require 'cr.guidance' } do
    local method = module.having(name)
    if method then
      local line = module.help(method):match('\n(  ' .. name .. '%f[%s][^\n]*)')
      lines[#lines + 1] = ("%s is an option of %s, as in '%s:%s=...':\n%s"):format(name, kind, method, name, line)
    end
  end
  table.sort(lines)
  return #lines > 0 and table.concat(lines, '\n') or nil
end

--- Returns help on a user's file of a scheduler, a guidance method or a cache, which is run for it.
--- @param path string
--- @return string text
--- @return boolean found
function M.file(path)
  if not require 'lfs'.attributes(path) then return ('there is no file %s'):format(path), false end
  local problem
  for _, kind in ipairs { 'schedulers', 'guidance', 'cache' } do
    local ok, text = pcall(require('cr.' .. kind).help, path)
    if ok then return text, true end
    problem = problem or tostring(text)
  end
  return ('%s is no scheduler, guidance method or cache: as a scheduler, %s'):format(path, problem), false
end

return M
