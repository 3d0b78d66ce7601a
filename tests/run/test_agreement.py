"""What processes compare before they train."""

import pytest

from cptjax.run import agreement
from tests.fixtures_run import small_run
from tests.fixtures_text import WORDS, make_store, make_tokenizer


@pytest.mark.parametrize("held_out", [False, True])
def test_a_store_that_lacks_a_file_is_told_as_when_one_process_opens_it(tmp_path, held_out):
    # Broken by: Manifest.read in _of_store (what the system says of a file that is not there).
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    stores = [make_store(tmp_path / name, tokenizer, [" ".join(WORDS)] * 9) for name in ("trained", "held_out")]
    run = small_run(stores[0], held_out=str(stores[1]))
    whole = agreement.of_run(run)
    assert whole["held_out"]["tokens-00000.array_record"]
    shard = stores[held_out] / "tokens-00000.array_record"
    shard.unlink()
    with pytest.raises(ValueError, match=f"^{shard} is missing: copy the whole store again$"):
        agreement.of_run(run)
