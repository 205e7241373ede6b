"""LatentSync's UNet3D and Stable Diffusion's AutoencoderKL, any widths, for training.

The names and shapes in `state_dict()` are the checkpoint's own, so what is trained here is loaded by
models/networks/unet3d.lua and models/networks/vae.lua as it is. Layout: channels last everywhere ([B F H W C] video,
[N H W C] pictures, [B T D] tokens); convolutions see the same memory as channels-last NCHW.

Papers: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022);
Guo et al., "AnimateDiff" (2023), for the motion modules; Li et al., "LatentSync" (2024).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Settings(dict):
    """A configuration whose entries are attributes too."""

    __getattr__ = dict.__getitem__


def group_norm(x, weight, bias, groups, eps):
    """GroupNorm of channels-last data: statistics over everything between batch and channels."""
    shape = x.shape
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    y = x.to(wide).reshape(shape[0], -1, groups, shape[-1] // groups)
    var, mean = torch.var_mean(y, dim=(1, 3), keepdim=True, correction=0)
    y = ((y - mean) * torch.rsqrt(var + eps)).reshape(shape)
    return (y * weight.to(wide) + bias.to(wide)).to(x.dtype)


class Norm(nn.Module):
    """GroupNorm's parameters; call it with [B ... C]."""

    def __init__(self, channels, groups, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.groups, self.eps = groups, eps

    def forward(self, x):
        return group_norm(x, self.weight, self.bias, self.groups, self.eps)


class LayerNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x).to(x.dtype)


class Conv(nn.Conv2d):
    """A convolution of the last three dimensions [H W C] of x, whatever stands before them."""

    def forward(self, x, pad=None):
        lead = x.shape[:-3]
        y = x.reshape(-1, *x.shape[-3:]).permute(0, 3, 1, 2)
        if pad:
            y = F.pad(y, pad)
        y = super().forward(y).permute(0, 2, 3, 1)
        return y.reshape(*lead, *y.shape[1:])


class Pointwise(nn.Module):
    """A 1x1 convolution's weights [O I 1 1], applied as the linear layer that it is."""

    def __init__(self, inputs, outputs):
        super().__init__()
        made = nn.Conv2d(inputs, outputs, 1)
        self.weight, self.bias = made.weight, made.bias

    def forward(self, x):
        return F.linear(x, self.weight.flatten(1), self.bias)


def upsample(x):
    """Nearest neighbour, twice the size: [... H W C] -> [... 2H 2W C]."""
    *lead, H, W, C = x.shape
    y = x.reshape(-1, H, 1, W, 1, C).expand(-1, H, 2, W, 2, C)
    return y.reshape(*lead, 2 * H, 2 * W, C)


def zeroed(layer):
    """Makes a layer start as nothing, so that a residual branch grows from the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# ---- the UNet ----

class Attention(nn.Module):
    """Multi-head attention over the second to last dimension; no bias before the output."""

    def __init__(self, width, inner, context, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context, inner, bias=False)
        self.to_v = nn.Linear(context, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def forward(self, x, context=None):
        context = x if context is None else context
        def split(y):
            return y.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        out = F.scaled_dot_product_attention(
            split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context)))
        return self.to_out[0](out.transpose(-3, -2).flatten(-2))


class GEGLU(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x):
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    def __init__(self, width, heads, context):
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn1 = Attention(width, width, width, heads)
        self.norm2 = LayerNorm(width)
        self.attn2 = Attention(width, width, context, heads)
        self.ff = FeedForward(width)
        self.norm3 = LayerNorm(width)

    def forward(self, x, tokens):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), tokens)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Attention within a frame, and to the frame's audio tokens."""

    def __init__(self, width, heads, context, groups):
        super().__init__()
        self.norm = Norm(width, groups, 1e-6)
        self.proj_in = Pointwise(width, width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, heads, context)])
        self.proj_out = zeroed(Pointwise(width, width))

    def forward(self, x, tokens):
        B, N, H, W, C = x.shape
        h = self.norm(x.reshape(B * N, H, W, C)).reshape(B * N, H * W, C)
        h = self.transformer_blocks[0](self.proj_in(h), tokens.flatten(0, 1))
        return x + self.proj_out(h).reshape(B, N, H, W, C)


class PositionEncoding(nn.Module):
    def __init__(self, width, length):
        super().__init__()
        position = torch.arange(length).unsqueeze(1)
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        pe = torch.zeros(1, length, width)
        pe[0, :, 0::2] = torch.sin(position * rate)
        pe[0, :, 1::2] = torch.cos(position * rate)
        self.register_buffer('pe', pe)


class TemporalAttention(Attention):
    """Each position attends to itself in the other frames: x [B T F C] of normalized values."""

    def __init__(self, width, heads, length):
        super().__init__(width, width, width, heads)
        self.pos_encoder = PositionEncoding(width, length)

    def forward(self, x):
        return super().forward(x + self.pos_encoder.pe[0, :x.shape[-2]].to(x.dtype))


class TemporalBlock(nn.Module):
    def __init__(self, width, heads, length, attentions):
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            [TemporalAttention(width, heads, length) for _ in range(attentions)])
        self.norms = nn.ModuleList([LayerNorm(width) for _ in range(attentions)])
        self.ff = FeedForward(width)
        self.ff_norm = LayerNorm(width)

    def forward(self, x):
        for attention, norm in zip(self.attention_blocks, self.norms):
            x = x + attention(norm(x))
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    def __init__(self, channels, m):
        super().__init__()
        heads = m['num_attention_heads']
        inner = heads * (channels // heads // m['temporal_attention_dim_div'])
        self.norm = Norm(channels, 32, 1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList([
            TemporalBlock(inner, heads, m['temporal_position_encoding_max_len'],
                          len(m['attention_block_types']))
            for _ in range(m['num_transformer_block'])])
        self.proj_out = zeroed(nn.Linear(inner, channels))

    def forward(self, x):
        B, N, H, W, C = x.shape
        h = self.norm(x.reshape(B * N, H, W, C)).reshape(B, N, H * W, C)
        h = self.proj_in(h).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h)
        return x + self.proj_out(h.transpose(1, 2)).reshape(B, N, H, W, C)


class MotionModule(nn.Module):
    def __init__(self, channels, m):
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, m)

    def forward(self, x):
        return self.temporal_transformer(x)


class Resnet(nn.Module):
    """Its GroupNorms see [B F H W C]: their statistics run over all frames of the window."""

    def __init__(self, inputs, outputs, embedding, groups, eps):
        super().__init__()
        self.norm1 = Norm(inputs, groups, eps)
        self.conv1 = Conv(inputs, outputs, 3, padding=1)
        if embedding:
            self.time_emb_proj = nn.Linear(embedding, outputs)
        self.norm2 = Norm(outputs, groups, eps)
        self.conv2 = zeroed(Conv(outputs, outputs, 3, padding=1))
        if inputs != outputs:
            self.conv_shortcut = Pointwise(inputs, outputs)
        self.skip = inputs == outputs

    def forward(self, x, embedding=None):
        h = self.conv1(F.silu(self.norm1(x)))
        if embedding is not None:
            h = h + self.time_emb_proj(embedding)[:, None, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.skip else self.conv_shortcut(x))


class Sampler(nn.Module):
    def __init__(self, channels, **options):
        super().__init__()
        self.conv = Conv(channels, channels, 3, **options)

    def forward(self, x, pad=None):
        return self.conv(x, pad)


class Block(nn.Module):
    """One level of the UNet, on the way down or up."""

    def __init__(self, resnets, width, heads, cross, motion, sampler, c):
        super().__init__()
        n = len(resnets)
        if cross:
            self.attentions = nn.ModuleList(
                [Transformer(width, heads, c.cross_attention_dim, c.norm_num_groups) for _ in range(n)])
        self.resnets = nn.ModuleList(resnets)
        if motion:
            self.motion_modules = nn.ModuleList([MotionModule(width, motion) for _ in range(n)])
        self.cross, self.motion = cross, bool(motion)
        if sampler == 'down':
            self.downsamplers = nn.ModuleList([Sampler(width, stride=2, padding=1)])
        elif sampler == 'up':
            self.upsamplers = nn.ModuleList([Sampler(width, padding=1)])
        self.sampler = sampler

    def forward(self, x, embedding, tokens, skips):
        """Down: appends to `skips`; up: takes from it."""
        for j, resnet in enumerate(self.resnets):
            if self.sampler in ('up', 'top'):
                x = torch.cat([x, skips.pop()], dim=-1)
            x = resnet(x, embedding)
            if self.cross:
                x = self.attentions[j](x, tokens)
            if self.motion:
                x = self.motion_modules[j](x)
            if self.sampler in ('down', 'bottom'):
                skips.append(x)
        if self.sampler == 'down':
            x = self.downsamplers[0](x)
            skips.append(x)
        elif self.sampler == 'up':
            x = self.upsamplers[0](upsample(x))
        return x


class MidBlock(nn.Module):
    def __init__(self, width, heads, embedding, c):
        super().__init__()
        self.attentions = nn.ModuleList(
            [Transformer(width, heads, c.cross_attention_dim, c.norm_num_groups)])
        self.resnets = nn.ModuleList(
            [Resnet(width, width, embedding, c.norm_num_groups, c.norm_eps) for _ in range(2)])

    def forward(self, x, embedding, tokens):
        x = self.attentions[0](self.resnets[0](x, embedding), tokens)
        return self.resnets[1](x, embedding)


class TimeEmbedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, t):
        half = self.linear_1.in_features // 2
        wide = self.linear_1.weight.dtype
        rate = torch.exp(torch.arange(half, device=t.device, dtype=wide) * (-math.log(10000.0) / half))
        angle = t.to(wide)[:, None] * rate
        e = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
        return self.linear_2(F.silu(self.linear_1(e)))


class UNet3D(nn.Module):
    """Predicts the noise of a window of latents.

    config: LatentSync's `model` block (see models/networks/unet3d_config.lua for the fields).
    """

    def __init__(self, config):
        super().__init__()
        self.config = c = Settings(config)
        widths, n = c.block_out_channels, c.layers_per_block
        levels, embedding = len(widths), 4 * widths[0]
        heads = c.attention_head_dim
        heads = list(heads) if isinstance(heads, (list, tuple)) else [heads] * levels
        motion = dict(c.motion_module_kwargs)

        def resnet(inputs, outputs):
            return Resnet(inputs, outputs, embedding, c.norm_num_groups, c.norm_eps)

        def moves(resolution):
            return motion if resolution in c.motion_module_resolutions else None

        self.conv_in = Conv(c.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0])
        self.down_blocks = nn.ModuleList()
        before = widths[0]
        for i, to in enumerate(widths):
            self.down_blocks.append(Block(
                [resnet(before if j == 0 else to, to) for j in range(n)], to, heads[i],
                c.down_block_types[i].startswith('CrossAttn'), moves(2 ** i),
                'down' if i < levels - 1 else 'bottom', c))
            before = to
        self.mid_block = MidBlock(widths[-1], heads[-1], embedding, c)
        self.up_blocks = nn.ModuleList()
        for i in range(levels):
            to, below = widths[levels - 1 - i], widths[max(levels - 2 - i, 0)]
            # LatentSync counts these resolutions from 8 down, whatever the number of levels.
            self.up_blocks.append(Block(
                [resnet((before if j == 0 else to) + (below if j == n else to), to)
                 for j in range(n + 1)], to, heads[levels - 1 - i],
                c.up_block_types[i].startswith('CrossAttn'), moves(2 ** (3 - i)),
                'up' if i < levels - 1 else 'top', c))
            before = to
        self.conv_norm_out = Norm(widths[0], c.norm_num_groups, c.norm_eps)
        self.conv_out = zeroed(Conv(widths[0], c.out_channels, 3, padding=1))

    def forward(self, sample, t, tokens):
        """sample [B F H W in_channels], t [B] timesteps, tokens [B F T D] -> [B F H W out_channels]."""
        embedding = F.silu(self.time_embedding(t))
        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, embedding, tokens, skips)
        x = self.mid_block(x, embedding, tokens)
        for block in self.up_blocks:
            x = block(x, embedding, tokens, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


# ---- the autoencoder ----

class VAEAttention(nn.Module):
    """One head as wide as the block, over all positions."""

    def __init__(self, width, groups):
        super().__init__()
        self.group_norm = Norm(width, groups, 1e-6)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x):
        N, H, W, C = x.shape
        h = self.group_norm(x).reshape(N, 1, H * W, C)
        h = F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out[0](h).reshape(N, H, W, C)


class VAELevel(nn.Module):
    def __init__(self, resnets, sampler=None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        width = resnets[-1].conv2.out_channels
        if sampler == 'down':
            self.downsamplers = nn.ModuleList([Sampler(width, stride=2)])
        elif sampler == 'up':
            self.upsamplers = nn.ModuleList([Sampler(width, padding=1)])
        self.sampler = sampler

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        if self.sampler == 'down':
            x = self.downsamplers[0](x, (0, 1, 0, 1))  # only on the right and at the bottom
        elif self.sampler == 'up':
            x = self.upsamplers[0](upsample(x))
        return x


class VAEMiddle(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.attentions = nn.ModuleList([VAEAttention(width, groups)])
        self.resnets = nn.ModuleList([Resnet(width, width, None, groups, 1e-6) for _ in range(2)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class VAEHalf(nn.Module):
    """Encoder or decoder."""

    def __init__(self, c, up):
        super().__init__()
        widths, n, g = c.block_out_channels, c.layers_per_block, c.norm_num_groups
        order = widths[::-1] if up else widths
        levels, before = [], order[0]
        for i, to in enumerate(order):
            inner = [Resnet(before if j == 0 else to, to, None, g, 1e-6) for j in range(n + up)]
            levels.append(VAELevel(inner, ('up' if up else 'down') if i < len(order) - 1 else None))
            before = to
        inputs = c.latent_channels if up else c.in_channels
        outputs = c.out_channels if up else 2 * c.latent_channels
        self.conv_in = Conv(inputs, order[0], 3, padding=1)
        self.mid_block = VAEMiddle(widths[-1], g)
        self.conv_norm_out = Norm(order[-1], g, 1e-6)
        self.conv_out = Conv(order[-1], outputs, 3, padding=1)
        self.up = bool(up)
        if up:
            self.up_blocks = nn.ModuleList(levels)
        else:
            self.down_blocks = nn.ModuleList(levels)

    def forward(self, x):
        x = self.conv_in(x)
        if self.up:
            x = self.mid_block(x)
        for level in self.up_blocks if self.up else self.down_blocks:
            x = level(x)
        if not self.up:
            x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Pictures [N H W 3] in [-1, 1] to latents [N h w latent_channels] and back."""

    def __init__(self, config):
        super().__init__()
        self.config = c = Settings(config)
        self.encoder = VAEHalf(c, 0)
        self.decoder = VAEHalf(c, 1)
        self.quant_conv = Pointwise(2 * c.latent_channels, 2 * c.latent_channels)
        self.post_quant_conv = Pointwise(c.latent_channels, c.latent_channels)

    def encode(self, x):
        """Mean and logarithm of the variance, not scaled."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=-1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))
