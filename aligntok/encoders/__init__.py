"""Encoders: pretrained vision models, images -> features on the tokenizer's grid."""
