--- The rows of the table that LatentSync's users publish, and two of ours. DPM is diffusers'
--- DPMSolverMultistepScheduler. Its 15-step row has variants: without GPU optimizations, with TF32 and the search for
--- convolution algorithms, and with fused operations and attention (the default here). In that table, only Whisper
--- was quantized to 8 and 4 bits.

local ROWS = {
  { 'ddim', 25 }, { 'ddim', 15 },
  { 'dpmpp_2m', 15, card = 'search=off+fusion=off' }, { 'dpmpp_2m', 15, card = 'tf32=on+fusion=off' }, { 'dpmpp_2m', 15 },
  { 'dpmpp_2m', 17 }, { 'dpmpp_2m', 25 },
  { 'dpmpp_2m', 15, quant = 'whisper=int8' }, { 'dpmpp_2m', 15, quant = 'whisper=int4' },
  { 'dpmpp_2m', 15, quant = '8bit' }, { 'dpmpp_2m', 15, quant = 'int4' },
}

--- @param device string on a CPU, which has no GPU options, the variants are one row
--- @return table[] a list of {scheduler, steps, card, quant} for grid.cells
return function(device)
  local rows = {}
  for i, row in ipairs(ROWS) do
    rows[i] = { scheduler = row[1], steps = row[2], card = device ~= 'cpu' and row.card or 'none', quant = row.quant or 'none' }
  end
  return rows
end
