import torch

from q2n.layers.codebook import CodebookLinear


def layer(dtype=torch.float16, bits=2):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (5, 12), generator=generator).to(torch.uint8)
    codebook = torch.randn(5, 2**bits, generator=generator).to(dtype)
    return CodebookLinear(codes=codes, codebook=codebook, bits=bits)


def test_a_weight_is_the_entry_of_its_row():
    example = layer()
    dense = example.dequantize()
    assert dense.dtype == torch.float32
    for i in range(5):
        for j in range(12):
            assert dense[i, j] == example.codebook[i, int(example.codes[i, j])]


def test_rows_are_scaled_in_the_codebook_alone():
    example, alpha = layer(torch.float32), torch.linspace(-0.5, 1.5, 5)
    scaled = example.scale_rows(alpha)
    assert scaled.codes is example.codes
    torch.testing.assert_close(scaled.dequantize(), example.dequantize() * alpha[:, None])
    assert layer(torch.bfloat16).scale_rows(alpha).codebook.dtype == torch.bfloat16


def test_codes_and_entries_are_counted():
    assert layer().stored_bits == 5 * 12 * 2 + 5 * 4 * 16
    assert layer(bits=3).bits_per_weight == 3 + 8 * 16 / 12


def test_its_tensors_rebuild_it():
    example = layer()
    again = CodebookLinear.from_tensors(example.tensors(), example.metadata())
    assert torch.equal(again.dequantize(), example.dequantize())
    assert (again.shape, again.stored_bits) == (example.shape, example.stored_bits)
    assert int(example.codes.max()) < 2 ** example.widths["codes"]
