"""What a token is: pixels to multi-scale codes and back.

    settings        frozen dataclasses from YAML and flags, for all packages
    versions        of this program, for files that it makes                 (no torch)
    flag_parser     a command line whose errors are one line                 (no torch)
    scales          schedules: how the codes of a clip are laid out          (no torch)
    autoencoder_config, quantizer_config, loss_config, config
                    settings of a tokenizer, part by part and as a whole     (no torch)
    presets         tokenizers by name                                       (no torch)
    finite          values that are no numbers, as an error                  (no torch)
    door            what a tokenizer takes, and what it refuses
    lookups         which code stands for a vector: VQ, FSQ, BSQ, LFQ
    precision       float32 as it is written
    reconstruction  the latents of clips as far as their scales are known
    quantizer       multi-scale residual quantization; inputs of next-scale generators
    causal          layers that never look ahead, each with its past as an argument
    cosines         the fixed transform from which an autoencoder starts without data
    autoencoder3d   the causal video autoencoder, by whole clips or by pieces
    image           the image autoencoder of VAR and LlamaGen, frame by frame
    tiles           large frames square by square, without seams
    similarity      SSIM and MS-SSIM, differentiable
    perceptual      LPIPS, from files of weights
    losses          what training minimises
    discriminator   critics that tell clips from reconstructions, and their loss
    model           the tokenizer, whichever its architecture: encode, decode
    streaming       video of any length, pyramid by pyramid
    beginning       a tokenizer's first weights and codes, from clips
    learner         a tokenizer while it learns: one step's loss
    folder          a tokenizer's folder: load, save
    latents         mean and standard deviation of each channel of the latents
    checkpoint      other people's checkpoints: tensors by name, nothing executed
    told_sizes      what most of its tensors say about one size
    key_report      whether it is a model's, whole: one error that names every key
    layouts         how published families name our tensors                  (no torch)
    shapes          what a checkpoint's shapes say about the model in it
    published       published checkpoints as tokenizers, whole or not at all
    health          how well the codes of each scale are used
    metrics         PSNR, SSIM and others of reconstructions
    frechet         the Frechet distance between two sets of features
    extractors      networks that make such features, each with its name
    cli             the commands

It imports neither `pipeline` nor `training`; the loop that trains a tokenizer is in `training`.
"""
