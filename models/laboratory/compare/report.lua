--- The rows of the table that LatentSync's users publish, and two of ours. DPM is diffusers' DPMSolverMultistepScheduler; of
--- its 15 steps there are variants: without what makes a card faster, with TF32 and the search for algorithms, with fused
--- operations and attention (as always here). What quantized 8 and 4 bits there was Whisper alone.

local ROWS = {
  { 'ddim', 25 }, { 'ddim', 15 },
  { 'dpmpp_2m', 15, card = 'search=off+fusion=off' }, { 'dpmpp_2m', 15, card = 'tf32=on+fusion=off' }, { 'dpmpp_2m', 15 },
  { 'dpmpp_2m', 17 }, { 'dpmpp_2m', 25 },
  { 'dpmpp_2m', 15, quant = 'whisper=int8' }, { 'dpmpp_2m', 15, quant = 'whisper=int4' },
  { 'dpmpp_2m', 15, quant = '8bit' }, { 'dpmpp_2m', 15, quant = 'int4' },
}

--- @param device string a CPU has no options of cards: there the variants are one row
--- @return table[] {scheduler, steps, card, quant} each, as grid.cells takes them
return function(device)
  local rows = {}
  for i, row in ipairs(ROWS) do
    rows[i] = { scheduler = row[1], steps = row[2], card = device ~= 'cpu' and row.card or 'none', quant = row.quant or 'none' }
  end
  return rows
end
