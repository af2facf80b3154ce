"""The two things that the one loop trains.

task        what the loop asks of either
generator   codes of clips, from code shards
tokenizer   the tokenizer itself, from pixel shards
"""
