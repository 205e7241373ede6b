"""What the small model is: the sizes of its networks and of its pictures, and how it is sampled."""

SIZE = 128          # pixels of the aligned face square
FACTOR = 8  # side of a latent in pixels
FRAMES = 16  # frames per window
FPS = 25
RATE = 16000  # samples per second
POSITIONS = 2  # Whisper's positions per frame
SAMPLING = {'size': SIZE, 'steps': 10, 'guidance': 1.5}

# diffusers' scheduler_config.json: second-order DPM-Solver++ (Lu et al. 2022) with Karras' noise levels. With ten network calls, it is
# among the schedulers (see lua/README.md) whose result is closest to DDIM with a hundred steps.
SCHEDULER = {
    '_class_name': 'DPMSolverMultistepScheduler', 'algorithm_type': 'dpmsolver++', 'solver_order': 2,
    'use_karras_sigmas': True, 'num_train_timesteps': 1000, 'beta_start': 0.00085, 'beta_end': 0.012,
    'beta_schedule': 'scaled_linear', 'prediction_type': 'epsilon',
}


def unet(latents=4):
    """LatentSync's `model` block with few channels; `latents` are the VAE's."""
    return {
        'act_fn': 'silu', 'add_audio_layer': True, 'attention_head_dim': [6, 4, 4],
        'block_out_channels': [96, 64, 64], 'center_input_sample': False,
        'cross_attention_dim': 384,
        'down_block_types': ['CrossAttnDownBlock3D', 'CrossAttnDownBlock3D', 'DownBlock3D'],
        'mid_block_type': 'UNetMidBlock3DCrossAttn',
        'up_block_types': ['UpBlock3D', 'CrossAttnUpBlock3D', 'CrossAttnUpBlock3D'],
        'downsample_padding': 1, 'flip_sin_to_cos': True, 'freq_shift': 0,
        'in_channels': 3 * latents + 1, 'layers_per_block': 1, 'mid_block_scale_factor': 1,
        'norm_eps': 1e-5, 'norm_num_groups': 32, 'out_channels': latents,
        'sample_size': SIZE // FACTOR, 'resnet_time_scale_shift': 'default',
        'use_motion_module': True, 'motion_module_resolutions': [1, 2, 4, 8],
        'motion_module_mid_block': False, 'motion_module_decoder_only': False,
        'motion_module_type': 'Vanilla',
        'motion_module_kwargs': {
            'num_attention_heads': 4, 'num_transformer_block': 1,
            'attention_block_types': ['Temporal_Self', 'Temporal_Self'],
            'temporal_position_encoding': True, 'temporal_position_encoding_max_len': 24,
            'temporal_attention_dim_div': 2, 'zero_initialize': True,
        },
    }


def vae(latents=4, scaling_factor=0.18215):
    """diffusers' config.json of an AutoencoderKL; training measures the scaling factor."""
    levels = 4
    return {
        '_class_name': 'AutoencoderKL', 'act_fn': 'silu', 'in_channels': 3, 'out_channels': 3,
        'latent_channels': latents, 'block_out_channels': [32, 64, 64, 64], 'layers_per_block': 1,
        'down_block_types': ['DownEncoderBlock2D'] * levels,
        'up_block_types': ['UpDecoderBlock2D'] * levels, 'norm_num_groups': 32,
        'sample_size': SIZE, 'scaling_factor': scaling_factor,
    }
