"""Conversations to token ids and loss mask, packed rows and batches; where data comes from; the small world."""
