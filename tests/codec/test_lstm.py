"""LSTMs that carry their state, against torch's own."""

import pytest
import torch

from slmkit.codec.lstm import Lstm, lstm_layout
from slmkit.codec.weights import Weights


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return torch.nn.LSTM(5, 7, 2, bidirectional=True).eval()


@pytest.mark.parametrize("cuts", [[], [1], [3, 4, 11]])
def test_pieces_joined_are_what_torch_gives_at_once(cuts):
    torch.manual_seed(1)
    theirs, x = torch.nn.LSTM(5, 7, 2).eval(), torch.randn(1, 5, 12)
    ours, state, found = Lstm(Weights(theirs.state_dict()), 2), None, []
    with torch.inference_mode():
        for part in x.tensor_split(cuts, dim=2):
            out, state = ours(part, state)
            found.append(out)
        expected, after = theirs(x.permute(2, 0, 1))
    torch.testing.assert_close(torch.cat(found, dim=2), expected.permute(1, 2, 0))
    for i, (hidden, cell) in enumerate(state):
        torch.testing.assert_close((hidden[0], cell[0]), (after[0][i], after[1][i]))


def test_each_layer_and_direction_by_itself(theirs):
    x, weights = torch.randn(1, 5, 9), Weights(theirs.state_dict())
    with torch.inference_mode():
        found = x
        for i in range(2):
            forward, backward = (Lstm(weights, 1, first=i, suffix=suffix) for suffix in ("", "_reverse"))
            found = torch.cat([forward(found, None)[0], backward(found.flip(2), None)[0].flip(2)], dim=1)
        torch.testing.assert_close(found, theirs(x.permute(2, 0, 1))[0].permute(1, 2, 0))


def test_other_devices_use_torchs_own(theirs):
    layer = Lstm(Weights(theirs.state_dict()), 1)._layers[0]
    rows, state = torch.randn(9, 5), (torch.randn(1, 1, 7), torch.randn(1, 1, 7))
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        (one, after), (other, other_after) = layer.stepwise(rows, state), layer.at_once(rows, state)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(after, other_after)


def test_the_state_that_was_given_stays_as_it_was(theirs):
    lstm, x = Lstm(Weights(theirs.state_dict()), 1), torch.randn(1, 5, 4)
    with torch.inference_mode():
        _, state = lstm(x, None)
        kept = [part.clone() for part in state[0]]
        lstm(x, state)
    assert all(torch.equal(part, before) for part, before in zip(state[0], kept, strict=True))


@pytest.mark.parametrize("both_ways", [False, True])
def test_layout_is_torchs(both_ways):
    theirs = torch.nn.LSTM(5, 7, 3, bidirectional=both_ways)
    found = lstm_layout(5, 7, 3, both_ways=both_ways)
    assert found == {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
