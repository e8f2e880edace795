"""What decides which pairs of a layer lock: each head's coupling and bandwidth, made of parameters, set and
limited by densities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncattn import locking
from syncattn.backends.call import Call
from syncattn.nn import density
from syncattn.nn.options import check_start


class CoupledHeads(nn.Module):
    """A layer whose heads have a coupling K and a bandwidth alpha each.

    A subclass calls `_add_coupling` where these parameters stand among its own, and says by `_counted_call`
    which pairs there are.

    Args:
        num_heads: H.
        density_range, sharpness, parametrisation: see `SelectiveSynchronizationAttention`.

    Raises:
        TypeError, ValueError: an option is out of range.
    """

    def __init__(
        self,
        num_heads: int,
        density_range: Sequence[float] | None,
        sharpness: float,
        parametrisation: str,
    ) -> None:
        super().__init__()
        check_start(density_range, sharpness, parametrisation)
        self.num_heads, self.parametrisation, self.sharpness = num_heads, parametrisation, sharpness
        self.density_range = None if density_range is None else (density_range[0], density_range[1])

    def _add_coupling(self, **factory: Any) -> None:
        """Make the parameters, empty. Their place among a layer's others is that in which optimizers and
        norms of gradients meet them."""
        couplings = () if self.parametrisation == "softplus" else (self.num_heads,)
        self.raw_coupling = nn.Parameter(torch.empty(couplings, **factory))
        self.raw_bandwidth = nn.Parameter(torch.empty(self.num_heads, **factory))

    def _reset_coupling(self, freq_dim: int) -> None:
        """In the form "log" the locking radius is the typical distance of two unrelated contents."""
        if self.parametrisation == "softplus":
            nn.init.ones_(self.raw_coupling)
            nn.init.ones_(self.raw_bandwidth)
            return
        radius = torch.tensor((2.0 * freq_dim) ** 0.5, dtype=torch.float32, device="cpu")
        coupling, bandwidth = locking.coupling_from_radius(radius, self.sharpness)
        nn.init.constant_(self.raw_coupling, float(coupling.log()))
        nn.init.constant_(self.raw_bandwidth, float(bandwidth.log()))

    @property
    def coupling(self) -> Tensor:
        """K > 0, (H,): the learnable coupling, before the order parameter scales it."""
        if self.parametrisation == "softplus":
            return F.softplus(self.raw_coupling).expand(self.num_heads)
        return self.raw_coupling.exp()

    @property
    def bandwidth(self) -> Tensor:
        """alpha > 0, (H,)."""
        softplus = self.parametrisation == "softplus"
        return F.softplus(self.raw_bandwidth) if softplus else self.raw_bandwidth.exp()

    @abstractmethod
    def _counted_call(self, *inputs: Any, **masks: Any) -> tuple[Call, Tensor | None]:
        """The operator's checked call that `forward` would make of these arguments, and which receivers are
        not padding, (B, N), None for all: in one mask the two would be of N x M."""

    @torch.no_grad()
    def count_locked(self, *inputs: Any, **masks: Any) -> density.Locking:
        """How many pairs lock, are allowed, and how many receivers have any, (H,) each, without padding.

        Args:
            *inputs, **masks: as `operator_call` takes them.
        """
        return density.count_locked(*self._counted_call(*inputs, **masks))

    def locked_density(self, *inputs: Any, **masks: Any) -> Tensor:
        """The fraction of allowed pairs that lock, (H,) float32, without padding.

        Args:
            *inputs, **masks: as `operator_call` takes them.
        """
        return self.count_locked(*inputs, **masks).density

    @torch.no_grad()
    def calibrate_(
        self,
        *inputs: Any,
        density_range: tuple[float, float] | None = None,
        partners_range: tuple[float, float] | None = None,
        **masks: Any,
    ) -> None:
        """Set coupling and bandwidth so that the heads' densities on this input are the ladder's, in place.

        Args:
            density_range: None for the layer's own.
            partners_range: the ladder in partners, of a receiver in the mean, in place of densities: the same
                whatever the length of the text. A head cannot have more than there are.
            *inputs, **masks: as `operator_call` takes them.

        Raises:
            ValueError: the parametrisation is "softplus" (its coupling is shared: one number cannot serve
                every head), both ladders are given, one is out of range, or the input gives a head no two
                different frequencies.
        """
        if density_range is not None and partners_range is not None:
            raise ValueError(
                "calibration takes density_range or partners_range, not both, got "
                f"density_range={density_range}, partners_range={partners_range}"
            )
        ends = density_range or self.density_range
        if self.parametrisation != "log" or (ends is None and partners_range is None):
            raise ValueError(
                "calibration needs parametrisation='log' and a density_range, got "
                f"parametrisation={self.parametrisation!r}, density_range={ends}"
            )
        call, receivers = self._counted_call(*inputs, **masks)
        if partners_range is not None:
            ladder = density.partners_ladder(call, receivers, *partners_range)
        else:
            assert ends is not None
            ladder = locking.density_ladder(*ends, self.num_heads, dtype=torch.float32, device="cpu")
        coupling, bandwidth = density.fit_coupling(call, self.coupling, ladder, self.sharpness, receivers)
        self.raw_coupling.copy_(coupling.log())
        self.raw_bandwidth.copy_(bandwidth.log())
