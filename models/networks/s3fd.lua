--- S3FD, the face detector of the reference's metric: VGG-16 with six pairs of output maps, boxes and scores, each
--- for one size of faces. Zhang et al. 2017.
--
-- Reads sfd_face.pth. Images are RGB minus a mean, at a quarter of the frame's size.

local cr = require 'cr'
local nn = require 'cr.nn'
local weights = require 'cr.weights'
local finite = require 'models.networks.finite'

local s3fd = {}

local MEAN = { 123, 117, 104 } -- of red, green, blue
local SIZES = { 16, 32, 64, 128, 256, 512 } -- anchor sizes of the maps, in pixels
local STEPS = { 4, 8, 16, 32, 64, 128 } -- strides of the maps, in pixels
local CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
local LEAST, NEAR, MOST, KEPT = 0.05, 0.3, 5000, 750 -- minimum score, maximum IoU, candidates, detections: the network's own
local SCALE = 0.25 -- relative to the frame
local SMALLEST = 112 -- minimum side of a frame: at a quarter, five halvings leave one pixel
local SCORE = 0.9 -- minimum score of a face for the metric
local APART = 0.1 -- maximum overlap of two faces

-- VGG's convolutions: index in the checkpoint, channels; 'pool' halves the size, rounding down or up; a number after
-- it names the map that is taken here, normalized.
local LAYERS = {
  { 0, 64 }, { 2, 64 }, { 'pool' }, { 5, 128 }, { 7, 128 }, { 'pool' },
  { 10, 256 }, { 12, 256 }, { 14, 256, norm = 'L2Norm3_3' }, { 'pool', up = true },
  { 17, 512 }, { 19, 512 }, { 21, 512, norm = 'L2Norm4_3' }, { 'pool' },
  { 24, 512 }, { 26, 512 }, { 28, 512, norm = 'L2Norm5_3' }, { 'pool' },
  { 31, 1024, dilation = 6 }, { 33, 1024, kernel = 1 },
}
local EXTRAS = { { 256, 1 }, { 512, 3 }, { 128, 1 }, { 256, 3 } }
local MAPS = { 256, 512, 512, 1024, 512, 256 } -- channels of the maps

--- All tensors of sfd_face.pth, with their shapes.
function s3fd.expected()
  local list = {}
  local function convolution(name, output, input, kernel)
    list[#list + 1] = { name = name .. '.weight', shape = { output, input, kernel, kernel } }
    list[#list + 1] = { name = name .. '.bias', shape = { output } }
  end
  local input = 3
  for _, layer in ipairs(LAYERS) do
    if layer[2] then
      convolution('vgg.' .. layer[1], layer[2], input, layer.kernel or 3)
      input = layer[2]
    end
  end
  for _, layer in ipairs(LAYERS) do
    if layer.norm then list[#list + 1] = { name = layer.norm .. '.weight', shape = { layer[2] } } end
  end
  for i, extra in ipairs(EXTRAS) do
    convolution('extras.' .. i - 1, extra[1], input, extra[2])
    input = extra[1]
  end
  for i, channels in ipairs(MAPS) do convolution('loc.' .. i - 1, 4, channels, 3) end
  for i, channels in ipairs(MAPS) do convolution('conf.' .. i - 1, i == 1 and 4 or 2, channels, 3) end
  return list
end

local Net = {}
Net.__index = Net

--- Creates a network from a tree of its weights (weights.tree).
--- @param tree table
--- @param device string? their device ('cpu')
function s3fd.new(tree, device) return setmetatable({ w = tree, device = device or 'cpu' }, Net) end

--- Loads sfd_face.pth.
--- @param path string
--- @param options table? {device = 'cpu'}
function s3fd.load(path, options)
  local file = weights.open(path)
  local ok, result = pcall(function()
    local device = options and options.device
    return s3fd.new(finite.weights(weights.known(file, s3fd.expected(), { device = device }), path), device)
  end)
  file:close()
  if not ok then error(result, 0) end
  return result
end

--- The raw output maps for images.
--- @param x Tensor f32 [1 H W 3], RGB minus the mean
--- @return Tensor[] boxes [1 h w 4], Tensor[] scores [1 h w 2] (the first map's [1 h w 4])
function Net:maps(x)
  local w, sources = self.w, {}
  for _, layer in ipairs(LAYERS) do
    if layer[1] == 'pool' then
      local h, v = x:size(2) % 2, x:size(3) % 2
      x = nn.max_pool2d(x, { kernel = 2, padding = layer.up and { 0, h, 0, v } or 0 })
    else
      local padding = layer.dilation or (layer.kernel == 1 and 0 or 1)
      x = nn.conv2d(w.vgg[layer[1]], x, { padding = padding, dilation = layer.dilation, act = 'relu' })
      if layer.norm then
        sources[#sources + 1] = x / (x:square():sum(4, true):sqrt() + 1e-10) * w[layer.norm].weight
      end
    end
  end
  sources[4] = x
  for i, extra in ipairs(EXTRAS) do
    local wide = extra[2] == 3
    x = nn.conv2d(w.extras[i - 1], x, { stride = wide and 2 or 1, padding = wide and 1 or 0, act = 'relu' })
    if wide then sources[#sources + 1] = x end
  end
  local boxes, scores = {}, {}
  for i, source in ipairs(sources) do
    boxes[i] = nn.conv2d(w.loc[i - 1], source, { padding = 1 })
    scores[i] = nn.conv2d(w.conf[i - 1], source, { padding = 1 })
  end
  return boxes, scores
end

local function overlap(a, b)
  local w, h = math.min(a[3], b[3]) - math.max(a[1], b[1]), math.min(a[4], b[4]) - math.max(a[2], b[2])
  if w <= 0 or h <= 0 then return 0 end
  return w * h / ((a[3] - a[1]) * (a[4] - a[2]) + (b[3] - b[1]) * (b[4] - b[2]) - w * h)
end

--- Removes boxes whose IoU with a better one exceeds `most`; `found` is sorted by descending score.
local function suppress(found, most)
  local kept = {}
  for _, d in ipairs(found) do
    local free = true
    for _, k in ipairs(kept) do
      if overlap(d.box, k.box) > most then
        free = false
        break
      end
    end
    if free then kept[#kept + 1] = d end
  end
  return kept
end

--- The faces of an image, by descending score.
--- @param x Tensor f32 [1 H W 3], RGB minus the mean
--- @param least number? minimum score (0.05, the network's own)
--- @return table[] {score, box = {x1, y1, x2, y2} relative to the image's sides}
function Net:detect(x, least)
  least = math.max(least or LEAST, LEAST)
  local found = {}
  local height, width = x:size(2), x:size(3)
  cr.scope(function()
    local boxes, scores = self:maps(x:to(self.device))
    for i = 1, #boxes do
      local h, v = boxes[i]:size(2), boxes[i]:size(3)
      local s = scores[i]:to 'cpu'
      -- The first map has three scores for "no face"; the largest counts.
      local none = i == 1 and s:narrow(4, 1, 3):max(4, true) or s:narrow(4, 1, 1)
      local odds = (s:narrow(4, s:size(4), 1) - none):contiguous()
      local p, b = odds:pointer(), boxes[i]:to 'cpu':contiguous()
      local q = b:pointer()
      for y = 0, h - 1 do
        for c = 0, v - 1 do
          local k = y * v + c
          local score = 1 / (1 + math.exp(-p[k]))
          if score > least then
            local sw, sh = SIZES[i] / width, SIZES[i] / height
            local cx = (c + 0.5) * STEPS[i] / width + q[4 * k] * CENTRE_VARIANCE * sw
            local cy = (y + 0.5) * STEPS[i] / height + q[4 * k + 1] * CENTRE_VARIANCE * sh
            local bw, bh = sw * math.exp(q[4 * k + 2] * SIZE_VARIANCE), sh * math.exp(q[4 * k + 3] * SIZE_VARIANCE)
            found[#found + 1] = { score = score, order = #found,
              box = { cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2 } }
          end
        end
      end
    end
  end)
  table.sort(found, function(a, b)
    if a.score ~= b.score then return a.score > b.score end
    return a.order > b.order
  end)
  while #found > MOST do table.remove(found) end
  local kept = suppress(found, NEAR)
  while #kept > KEPT do table.remove(kept) end
  return kept
end

--- A frame at a quarter of its size, as the network takes it.
local function reduced(frame)
  local function quarter(n) -- rounded half to even
    local q = math.floor(n * SCALE)
    local rest = n * SCALE - q
    return (rest > 0.5 or rest == 0.5 and q % 2 == 1) and q + 1 or q
  end
  local height, width = frame:size(1), frame:size(2)
  local h, w = math.max(1, quarter(height)), math.max(1, quarter(width))
  -- Bilinear interpolation at exactly a quarter: each pixel is the mean of the central four of 4 x 4.
  local x = frame:narrow(1, 1, math.min(height, 4 * h)):narrow(2, 1, math.min(width, 4 * w))
  if x:size(1) < 4 * h then x = cr.cat({ x, x:narrow(1, x:size(1), 1):expand(4 * h - x:size(1), -1, -1) }, 1) end
  if x:size(2) < 4 * w then x = cr.cat({ x, x:narrow(2, x:size(2), 1):expand(-1, 4 * w - x:size(2), -1) }, 2) end
  return nn.resize(x:contiguous(), h, w, 'bilinear')
end

--- The faces of a frame as the reference's metric uses them: searched at a quarter of the size, with a score above
--- 0.9, by descending score.
--- @param frame Tensor u8 [H W 3], RGB
--- @return table[] {score, box = {x1, y1, x2, y2} in pixels}
function Net:find(frame)
  if frame.dtype ~= 'u8' or frame:dim() ~= 3 or frame:size(3) ~= 3 then
    error(('s3fd: the frame must be u8 [H W 3], not %s [%s]'):format(frame.dtype, table.concat(frame.shape, ' ')), 2)
  end
  local height, width = frame:size(1), frame:size(2)
  if math.min(height, width) < SMALLEST then
    error(('a frame of %d x %d pixels is too small for S3FD: it needs %d x %d'):format(width, height, SMALLEST, SMALLEST), 0)
  end
  local faces = cr.scope(function()
    local x = reduced(frame:to(self.device)):to 'f32' - cr.tensor(MEAN, { device = self.device })
    return self:detect(x:unsqueeze(1), SCORE)
  end)
  for _, face in ipairs(faces) do
    local b = face.box
    face.box = { b[1] * width, b[2] * height, b[3] * width, b[4] * height }
  end
  return suppress(faces, APART)
end

--- Frees the weights. May be called twice.
function Net:free()
  local function walk(node)
    for _, value in pairs(node) do
      if cr.is_tensor(value) then value:free() else walk(value) end
    end
  end
  walk(self.w)
end

return s3fd
