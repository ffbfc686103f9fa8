"""Recurrences: layers that take a sequence, (time, in), and carry a state from one step to the next."""

from jaxnet.layers.recurrent.bidirectional import bidirectional
from jaxnet.layers.recurrent.gru import gru
from jaxnet.layers.recurrent.lstm import lstm
from jaxnet.layers.recurrent.over_time import Piece
from jaxnet.layers.recurrent.rnn import rnn

__all__ = ["Piece", "bidirectional", "gru", "lstm", "rnn"]
