--- A ComfyUI for a test: CR_COMFYUI names its folder, CR_COMFYUI_PYTHON the Python with its dependencies (default:
--- that of venv/ or .venv/ in the folder).

local child = require 'tests.support.child'
local cjson = require 'cjson'
local cr = require 'cr'
local json = require 'cr.json'
local lfs = require 'lfs'

local M = {}

local here = cr.root .. '/tests/support/comfyui'

local folder, python = os.getenv 'CR_COMFYUI', os.getenv 'CR_COMFYUI_PYTHON'
for _, name in ipairs { 'venv', '.venv' } do
  local path = ('%s/%s/bin/python'):format(folder or '', name)
  if folder and not python and lfs.attributes(path, 'mode') then python = path end
end

--- The reason why there is no ComfyUI; nil if there is one.
M.absent = not folder and 'CR_COMFYUI names no folder of ComfyUI' or not python and 'CR_COMFYUI_PYTHON names no Python for ComfyUI' or nil

--- A Python for programs that need only the standard library.
M.any_python = python or 'python3'

--- Starts ComfyUI with Crescent's nodes, lets it run prompts one after another, and ends it.
--- @param runs table[] in the format of tests/support/comfyui/drive.py takes them
--- @param env table<string, string>? variables
--- @return table {runs = result of each, nodes = Crescent's nodes as ComfyUI describes them}
function M.drive(runs, env)
  local nodes = { crescent = cr.root .. '/scripts/comfyui', look = here .. '/look' }
  local r = child.run({ here .. '/drive.py', folder, child.folder .. '/comfyui' }, {
    program = python, stdin = json.encode { nodes = nodes, runs = json.list(runs) }, env = env,
  })
  if r.code ~= 0 then error(r.err) end
  return cjson.decode(r.out)
end

return M
