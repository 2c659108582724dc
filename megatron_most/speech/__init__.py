"""Sound files in, units out, and back: codecs, vocoders that speak units, and judges that write down what they hear.

audio.py reads spans of any file; codec.py says what a codec is and keeps it in a folder; mfcc.py is the codec that
needs no download, hubert_codec.py the one on a HuBERT model; frames.py gives features as they are; augment.py changes
sound as a seed says. vocoder.py says what a vocoder is and keeps it likewise; codebook.py is fitted, hifigan.py
trained. judges.py names recognisers. Importing this imports no torch, transformers or av.
"""

from megatron_most.speech.audio import REASONS, AudioError, AudioInfo, probe, read_span, to_samples
from megatron_most.speech.augment import Augmentation, Augmenter, open_augmentation, stream
from megatron_most.speech.centroids import import_quantiser
from megatron_most.speech.codebook import CodebookVocoder
from megatron_most.speech.codebook_fit import fit_codebook
from megatron_most.speech.codec import CodecIdentity, SpeechCodec, hash_of
from megatron_most.speech.codec_files import PRESETS, Preset, load_codec, save_codec
from megatron_most.speech.features import mfcc_features
from megatron_most.speech.frames import FrameIdentity, FrameSettings, FrameSource, open_frames, reopen_frames
from megatron_most.speech.hifigan import HifiGanShape, HifiGanVocoder, embed_frames, make_model
from megatron_most.speech.hifigan_public import import_hifigan
from megatron_most.speech.hubert import HubertFeatures
from megatron_most.speech.hubert_codec import HubertCodec, fit_hubert_codec
from megatron_most.speech.hubert_layers import HubertLayers, read_layers
from megatron_most.speech.judge import Judge, JudgeIdentity
from megatron_most.speech.judge_pocketsphinx import as_words, unknown_words
from megatron_most.speech.judges import JUDGES, load_judge
from megatron_most.speech.kmeans import KMeansFit, assign, fit_kmeans
from megatron_most.speech.mfcc import MfccCodec, fit_mfcc_codec
from megatron_most.speech.quantiser import Quantiser
from megatron_most.speech.sound_out import encode_sound, sound_format, write_sound
from megatron_most.speech.units import UnitSequence, merge_repeats
from megatron_most.speech.vocoder import StorableVocoder, Vocoder, checked_speaker, require_codec
from megatron_most.speech.vocoder_files import load_vocoder, save_vocoder

__all__ = [
    "JUDGES",
    "PRESETS",
    "REASONS",
    "AudioError",
    "AudioInfo",
    "Augmentation",
    "Augmenter",
    "CodebookVocoder",
    "CodecIdentity",
    "FrameIdentity",
    "FrameSettings",
    "FrameSource",
    "HifiGanShape",
    "HifiGanVocoder",
    "HubertCodec",
    "HubertFeatures",
    "HubertLayers",
    "Judge",
    "JudgeIdentity",
    "KMeansFit",
    "MfccCodec",
    "Preset",
    "Quantiser",
    "SpeechCodec",
    "StorableVocoder",
    "UnitSequence",
    "Vocoder",
    "as_words",
    "assign",
    "checked_speaker",
    "embed_frames",
    "encode_sound",
    "fit_codebook",
    "fit_hubert_codec",
    "fit_kmeans",
    "fit_mfcc_codec",
    "hash_of",
    "import_hifigan",
    "import_quantiser",
    "load_codec",
    "load_judge",
    "load_vocoder",
    "make_model",
    "merge_repeats",
    "mfcc_features",
    "open_augmentation",
    "open_frames",
    "probe",
    "read_layers",
    "read_span",
    "reopen_frames",
    "require_codec",
    "save_codec",
    "save_vocoder",
    "sound_format",
    "stream",
    "to_samples",
    "unknown_words",
    "write_sound",
]
