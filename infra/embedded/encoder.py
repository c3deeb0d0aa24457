"""Autoencoder of the embedded model, with weights set by hand: no training, equal weights on every machine.

A stock AutoencoderKL (f = 8) whose convolutions compute, for every 8 x 8 block of pixels, twelve numbers: mean colour
(Y, Cb, Cr), where brightness changes inside the block (across, down, crossed), and how much it changes from pixel to
pixel at three scales, which is what texture is. The decoder paints the block's colours back.

Two tricks: silu(x) - silu(-x) = x carries signed values through a nonlinearity, and silu(gx)/g + silu(-gx)/g = |x| for
a large gain g measures energy. A pair of constants +PIN and -PIN fixes what group normalisation divides by.
"""

from typing import Any

import torch
from torch import Tensor, nn

from diffseg.types import Float

AUTOENCODER: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 16, 24, 32],
    "layers_per_block": 1,
    "latent_channels": 12,
    "norm_num_groups": 1,
    "sample_size": 256,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": False,
}
YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
PIN = 30.0  # far above any signal, so that it alone decides the deviation
GAIN = 300.0  # |x| is off by at most 0.28 / GAIN, a quarter of a grey level
# Channels of the encoder, by name: where each value lives.
Y, NEG_Y, CB, CR, POS, NEG, FINE_X, FINE_Y = range(8)  # from 256 x 256 on
MID_X, MID_Y, MID_C = 8, 9, 10  # from 128 x 128 on
COARSE = 11  # from 64 x 64 on
STEP_X, STEP_Y, STEP_XY = 12, 13, 14  # at 32 x 32: differences of the block's quarters
LATENTS = (Y, CB, CR, STEP_X, STEP_Y, STEP_XY, FINE_X, FINE_Y, MID_X, MID_Y, MID_C, COARSE)
KNEES = {FINE_X: 0.08, FINE_Y: 0.08, MID_X: 0.15, MID_Y: 0.15, MID_C: 0.06, COARSE: 0.3}  # knee of the compression
FAINT = 0.1  # silu is linear to 5 % for signals this small
SLOPE = 0.3  # of an energy above its knee: strong and very strong texture hardly differ
ACROSS = torch.tensor([[0.0, 0, 0], [-0.5, 0, 0.5], [0, 0, 0]])


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.zero_()


def _set_identity(conv: nn.Conv2d, kernel: Tensor | None = None) -> None:
    """Map every channel to itself through one kernel (1 at the centre where None)."""
    _zero(conv)
    for channel in range(min(conv.in_channels, conv.out_channels)):
        if kernel is not None:
            conv.weight[channel, channel] = kernel
        else:
            conv.weight[channel, channel, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1


def _shortcut_only(resnet: Any) -> None:
    """Make a residual block return its input."""
    _zero(resnet.conv2)
    if resnet.conv_shortcut is not None:
        _set_identity(resnet.conv_shortcut)


def _scale_norm(norm: nn.GroupNorm, gain: float) -> None:
    """Make a normalisation multiply by `gain` only: two channels of +-PIN fix the deviation."""
    norm.weight.fill_(gain * PIN * (2 / norm.num_channels) ** 0.5)
    norm.bias.zero_()


def _measure(resnet: Any, probes: list[tuple[int, Tensor, int]]) -> None:
    """Make a residual block add |probe| of a channel to another: (source, kernel 3 x 3, destination).

    The hidden layer holds +probe and -probe of each, and a pair of pins of its own.
    """
    _shortcut_only(resnet)
    _zero(resnet.conv1)
    _scale_norm(resnet.norm1, FAINT)
    _scale_norm(resnet.norm2, GAIN)
    resnet.conv1.bias[-2:] = torch.tensor([PIN, -PIN])
    for index, (source, kernel, destination) in enumerate(probes):
        for sign, unit in ((1, 2 * index), (-1, 2 * index + 1)):
            if source == Y:  # the pair Y, -Y makes the first nonlinearity exactly linear
                resnet.conv1.weight[unit, Y] = sign * kernel / FAINT
                resnet.conv1.weight[unit, NEG_Y] = -sign * kernel / FAINT
            else:
                resnet.conv1.weight[unit, source] = 2 * sign * kernel / FAINT
            resnet.conv2.weight[destination, unit, 1, 1] += 1 / GAIN


def _compress_into_pairs(resnet: Any) -> None:
    """Bend energies above their knee, x - (1 - SLOPE) * max(x - knee, 0), and write every latent as a pair +x, -x.

    The pairs make the last nonlinearity of the encoder exactly linear.
    """
    for module in (resnet.conv1, resnet.conv2, resnet.conv_shortcut):
        _zero(module)
    _scale_norm(resnet.norm1, GAIN)
    _scale_norm(resnet.norm2, GAIN)
    resnet.conv1.bias[-2:] = torch.tensor([PIN, -PIN])
    for latent, channel in enumerate(LATENTS):
        for sign, unit in ((1, 2 * latent), (-1, 2 * latent + 1)):
            resnet.conv_shortcut.weight[unit, channel] = sign
            if channel in KNEES:
                resnet.conv2.weight[unit, latent, 1, 1] = -sign * (1 - SLOPE) / GAIN
        if channel in KNEES:
            resnet.conv1.weight[latent, channel, 1, 1] = 1 / GAIN
            resnet.conv1.bias[latent] = -KNEES[channel]
    for pin in (POS, NEG):
        resnet.conv_shortcut.weight[2 * len(LATENTS) + pin - POS, pin] = 1


def _set_encoder(encoder: Any) -> None:
    _zero(encoder.conv_in)
    for channel, row in ((Y, YCC[0]), (NEG_Y, -YCC[0]), (CB, YCC[1]), (CR, YCC[2])):
        encoder.conv_in.weight[channel, :, 1, 1] = row
    encoder.conv_in.bias[POS], encoder.conv_in.bias[NEG] = PIN, -PIN
    blocks = encoder.down_blocks
    halve = torch.zeros(3, 3)
    halve[:2, :2] = 0.25
    for block in blocks[:-1]:
        _set_identity(block.downsamplers[0].conv, halve)
    _measure(blocks[0].resnets[0], [(Y, ACROSS, FINE_X), (Y, ACROSS.T, FINE_Y)])
    colours = [(source, kernel, MID_C) for source in (CB, CR) for kernel in (ACROSS, ACROSS.T)]
    _measure(blocks[1].resnets[0], [(Y, ACROSS, MID_X), (Y, ACROSS.T, MID_Y), *colours])
    _measure(blocks[2].resnets[0], [(Y, ACROSS, COARSE), (Y, ACROSS.T, COARSE)])
    last = blocks[2].downsamplers[0].conv
    for channel, signs in ((STEP_X, [[-1, 1], [-1, 1]]), (STEP_Y, [[-1, -1], [1, 1]]), (STEP_XY, [[1, -1], [-1, 1]])):
        last.weight[channel, Y, :2, :2] = torch.tensor(signs) / 4
    _compress_into_pairs(blocks[3].resnets[0])
    for resnet in encoder.mid_block.resnets:
        _shortcut_only(resnet)
    _scale_norm(encoder.conv_norm_out, 1.0)
    _zero(encoder.conv_out)
    for latent in range(len(LATENTS)):
        encoder.conv_out.weight[latent, 2 * latent, 1, 1] = 1
        encoder.conv_out.weight[latent, 2 * latent + 1, 1, 1] = -1
    encoder.conv_out.bias[len(LATENTS) :] = -8  # log variance: the posterior is its mean


def _set_decoder(decoder: Any) -> None:
    """Mean colours, smoothly enlarged, as pairs +x, -x in the first six channels; the next two are pins."""
    colours, pins = 3, slice(6, 8)
    _zero(decoder.conv_in)
    for channel in range(colours):
        decoder.conv_in.weight[2 * channel, channel, 1, 1] = 1
        decoder.conv_in.weight[2 * channel + 1, channel, 1, 1] = -1
    decoder.conv_in.bias[pins] = torch.tensor([PIN, -PIN])
    smooth = torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1]) / 16
    for resnet in [*decoder.mid_block.resnets, *(r for block in decoder.up_blocks for r in block.resnets)]:
        _shortcut_only(resnet)
    for block in decoder.up_blocks[:-1]:
        _set_identity(block.upsamplers[0].conv, smooth)
        block.upsamplers[0].conv.weight[pins] = 0  # at the frame smoothing would make them smaller
        block.upsamplers[0].conv.bias[pins] = torch.tensor([PIN, -PIN])
    _scale_norm(decoder.conv_norm_out, 1.0)
    _zero(decoder.conv_out)
    to_rgb = torch.linalg.inv(YCC)
    for channel in range(colours):
        decoder.conv_out.weight[:, 2 * channel, 1, 1] = to_rgb[:, channel]
        decoder.conv_out.weight[:, 2 * channel + 1, 1, 1] = -to_rgb[:, channel]


@torch.no_grad()
def set_by_hand(autoencoder: Any, pictures: Float[Tensor, "B 3 H W"]) -> None:
    """Set every weight of an `AUTOENCODER`; its latents, scaled, have zero mean and unit variance over the pictures.

    pictures: in [-1, 1], as the encoder takes them.
    """
    _set_encoder(autoencoder.encoder)
    _set_decoder(autoencoder.decoder)
    _set_identity(autoencoder.quant_conv)
    _set_identity(autoencoder.post_quant_conv)
    latents = torch.cat([autoencoder.encode(picture[None]).latent_dist.mean for picture in pictures])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    scale = 1 / (AUTOENCODER["scaling_factor"] * deviation)
    count = len(LATENTS)
    autoencoder.quant_conv.weight[:count] *= scale[:, None, None, None]
    autoencoder.quant_conv.bias[:count] = -mean * scale
    autoencoder.post_quant_conv.weight /= scale[:, None, None, None]
    autoencoder.post_quant_conv.bias.copy_(mean)
