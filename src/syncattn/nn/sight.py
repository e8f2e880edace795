"""What a receiver may see of the token *before* a sender, where a mask says what it may see of the sender.

A sender j carries something of the token before it: delayed heads couple to what that one emitted, a token
shift mixes it into j's frequency, phase and value. A receiver that may see j but not the token before must
meet j as if it were the first of its sequence. Mostly all who see j agree about the token before (causal
masks, packed texts), and j has one form. Where they do not (a sliding window), or where looking would make a
device wait or is not possible, j stands in the call in each of its forms, and the mask gives every receiver
one of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from syncattn.backends.call import is_plain
from syncattn.nn.inputs import Inputs
from syncattn.nn.tokens import number_before, shift_by_one


class Sight(NamedTuple):
    """Who may see what, (B or 1, H or 1, N, M) bool each."""

    seen: Tensor  # whether receiver i may see sender j; itself included, whatever self_coupling says
    before: Tensor  # whether there is a token before j and i may see that, too
    follows: Tensor | None  # (B or 1, M) bool: `before`, where all who see j agree; None: senders have forms

    def of_receivers(self) -> Tensor:
        """(B or 1, H or 1, N) bool: whether receivers, the last senders, may see the token before them."""
        queries, keys = self.before.shape[-2:]
        return self.before.diagonal(keys - queries, -2, -1)


class Seen(NamedTuple):
    """Who may see whom, by a mask, padding and causality."""

    pairs: Tensor | None  # (B or 1, H or 1, N, M) bool; None without an attn_mask
    heard: Tensor | None  # (B or 1, H or 1, M) bool, whom anybody may see; None: everybody
    sight: Sight | None  # of the tokens before senders; None: there is nothing to heed
    goes_on: Tensor | None = None  # (B, M) bool, of packed texts: `follows`, without any pairs

    @property
    def follows(self) -> Tensor | None:
        """(B or 1, M) bool, False where a sender counts as the first of its sequence; None: nobody else."""
        return self.goes_on if self.sight is None else self.sight.follows

    @property
    def in_forms(self) -> bool:
        """Whether senders stand in the call in several forms."""
        return self.sight is not None and self.sight.follows is None


class Form(NamedTuple):
    """One form of all senders, and the receivers that meet it."""

    send: Tensor  # (B, H, M, m)
    value: Tensor  # (B, H, M, d)
    met: Tensor  # (B or 1, H or 1, N, M) bool


def who_sees_whom(given: Inputs, has_shift: bool, has_delay: bool) -> Seen:
    """Who may see whom, and, for a layer with a token shift or a delay, the tokens before them.

    Raises:
        ValueError: an attn_mask does not go with the token shift.
    """
    real = given.real
    if given.allowed is None:
        goes_on = None if given.texts is None else given.texts.follows
        return Seen(None, None if real is None else real[:, None], None, goes_on)
    pairs = seen_pairs(given.allowed.expand(-1, -1, given.queries, given.keys), real, given.is_causal)
    sight = None
    if has_shift and not given.itself and not given.is_causal:
        raise ValueError(
            "attn_mask does not go with a token shift in cross-attention: a query is mixed with the query "
            "before it, of which a mask of keys says nothing. Leave the mask out, make the layer with "
            "token_shift=False, or say self_attention=True if keys are the queries, is_causal=True if the "
            "queries are the keys' end; got a mask and a key that is not query"
        )
    if has_shift or has_delay:
        sight = look_back(pairs, real, receivers_too=has_shift)
    return Seen(pairs, pairs.any(-2), sight)


def seen_pairs(allowed: Tensor, real: Tensor | None, is_causal: bool) -> Tensor:
    """What a mask (B or 1, H or 1, N, M), padding (B, M) and causality allow together, in the mask's form."""
    queries, keys = allowed.shape[-2:]
    if is_causal:
        allowed = allowed & allowed.new_ones(queries, keys).tril(keys - queries)
    return allowed if real is None else allowed & real[:, None, None, :]


def look_back(seen: Tensor, real: Tensor | None, receivers_too: bool) -> Sight | None:
    """What receivers may see of the tokens before senders; None if whoever sees a token sees the one before.

    Args:
        seen: (B or 1, H or 1, N, M), from `seen_pairs`.
        real: (B, M) bool, False = padding, of which nobody is the token before; None if there is none.
        receivers_too: receivers, which are the last senders, look back from their own places as well.
    """
    sight = Sight(seen, at_the_one_before(seen, real), None)
    if not is_plain(seen):
        return sight
    own, ahead = sight.of_receivers() if receivers_too else None, seen.shape[-1] - seen.shape[-2]
    miss = (seen > sight.before).any(-2)  # > is "and not", in one step
    if own is not None:
        miss = miss | torch.nn.functional.pad(~own, (ahead, 0))
    miss = miss.any(1)  # heads have to agree, too
    number = (
        torch.arange(miss.shape[-1], dtype=torch.int64, device=miss.device)
        if real is None
        else number_before(real)
    )
    if not bool((miss & (number > 0)).any()):
        return None
    see = (seen & sight.before).any(-2)
    if own is not None:
        see = see | torch.nn.functional.pad(own, (ahead, 0))
    return sight if bool((see.any(1) & miss).any()) else sight._replace(follows=~miss)


def forms_of_senders(
    sight: Sight,
    emitted: tuple[Tensor, Tensor],
    value: tuple[Tensor, Tensor],
    real: Tensor | None,
    nobody: Tensor | None,
    delayed: Tensor,
) -> list[Form]:
    """Every form in which some receiver may meet a sender; each pair that is seen meets one of them.

    Args:
        sight: of a mask that all who see a sender do not agree on.
        emitted, value: (B, H, M, m) and (B, H, M, d), with the token before mixed in, and without; the same
            tensor twice if no token shift mixes it in.
        real: (B, M) bool, False = padding; None if there is none.
        nobody: what delayed heads couple to where no token is before, (B or 1, H, M, m); None: no delay.
        delayed: (H,) bool, the heads with a delay.
    """
    seen, before = sight.seen, sight.before
    mixed, alone = emitted
    if nobody is None:
        return [Form(mixed, value[0], seen & before), Form(alone, value[1], seen & ~before)]
    late = delayed[:, None, None]
    nothing = torch.zeros_like(mixed[:, :, 0])  # the first token: no receiver meets it in these forms
    forms = [Form(torch.where(late, shift_by_one(mixed, nothing, real), mixed), value[0], seen & before)]
    if mixed is not alone:  # the one before has a form of its own, for those who may not see two back
        two_before = before & at_the_one_before(before, real)
        forms[0] = forms[0]._replace(met=seen & two_before)
        early = torch.where(late, shift_by_one(alone, nothing, real), mixed)
        forms.append(Form(early, value[0], seen & before & ~two_before))
    return [*forms, Form(torch.where(late, nobody, alone), value[1], seen & ~before)]


def in_one_call(forms: list[Form], self_coupling: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Senders, values and mask of a call in which every sender stands in all its forms, one after the other.

    Self-coupling and causality are in the mask.
    """
    met = [form.met for form in forms]
    if not self_coupling:
        queries, keys = met[0].shape[-2:]
        other = ~torch.eye(queries, keys, dtype=torch.bool, device=met[0].device)
        met = [m & other for m in met]
    mask = torch.stack(met, dim=-1).flatten(-2)
    send = torch.stack([form.send for form in forms], dim=3).flatten(2, 3)
    value = torch.stack([form.value for form in forms], dim=3).flatten(2, 3)
    return send, only(value, mask.any(-2)), mask


def only(x: Tensor, heard: Tensor | None) -> Tensor:
    """x (B, H, M, c), 0 for tokens that nobody may see, as heard (B or 1, H or 1, M) bool says: 0 * NaN would
    reach those who may not."""
    return x if heard is None else torch.where(heard[..., None], x, 0)


def fold(weights: Tensor, keys: int) -> Tensor:
    """The weights (B, H, N, M) of the senders, from those of all their forms (B, H, N, forms M)."""
    return weights if weights.shape[-1] == keys else weights.unflatten(-1, (keys, -1)).sum(-1)


def at_the_one_before(pairs: Tensor, real: Tensor | None) -> Tensor:
    """Of pairs (B or 1, H or 1, N, M): at each sender what is at the token before it; False if none is."""
    shifted = torch.nn.functional.pad(pairs, (1, 0))
    if real is None:
        return shifted[..., : pairs.shape[-1]]
    return shifted.gather(-1, number_before(real)[:, None, None, :].expand_as(pairs))
