"""Text of ten scripts through every step: kept as it is, tokenised without loss, compared by words or characters."""

import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from hope_data import decontaminate, dedup, documents, filters, passages, sharding, tokenizer_training, units
from hope_data.cli import main
from hope_data.documents import Document
from hope_data.tokenizer import Tokenizer
from hope_data.validate import validate

# Written for these tests.
PARAGRAPHS = {
    "Latin": (
        "Port był cichy, gdy wróciły pierwsze łodzie. Nikt na nabrzeżu się nie odzywał, bo burza zabrała dwóch "
        "rybaków, a kobiety, które tam czekały, umiały liczyć. W wiosce zabrzmiał dzwon; ktoś zobaczył „żagiel”, "
        "daleko na morzu, i wszyscy pobiegli na skałę, żeby się upewnić."
    ),
    "Cyrillic": (
        "Гавань была тиха, когда вернулись первые лодки. Никто на причале не говорил ни слова, потому что шторм унёс "
        "двоих, а женщины, которые ждали на берегу, умели считать. В деревне зазвонил колокол: кто-то увидел «парус», "
        "далеко в море, и все побежали к скале, чтобы убедиться в этом."
    ),
    "Greek": (
        "Το λιμάνι ήταν ήσυχο όταν γύρισαν οι πρώτες βάρκες. Κανείς στην προκυμαία δεν μιλούσε, γιατί η καταιγίδα "
        "είχε πάρει δύο ψαράδες και οι γυναίκες που περίμεναν εκεί ήξεραν να μετρούν. Στο χωριό χτύπησε μια καμπάνα· "
        "κάποιος είχε δει ένα πανί, μακριά στο πέλαγος, και όλοι έτρεξαν προς τον βράχο."
    ),
    "Arabic": (
        "كان الميناء هادئًا عندما عادت القوارب الأولى. لم يتكلم أحد على الرصيف، لأن العاصفة أخذت اثنين من الصيادين، "
        "وكانت النساء المنتظرات هناك يعرفن العد. دق جرس في القرية، فقد رأى أحدهم شراعًا بعيدًا في البحر، وركض الجميع "
        "نحو الصخرة ليتأكدوا من ذلك بأنفسهم قبل أن يحل الظلام على الشاطئ."
    ),
    "Hebrew": (
        "הנמל היה שקט כאשר חזרו הסירות הראשונות. איש על הרציף לא דיבר, כי הסערה לקחה שניים מן הדייגים, והנשים שחיכו "
        "שם ידעו לספור. בכפר צלצל פעמון: מישהו ראה מפרש רחוק בים, וכולם רצו אל הסלע כדי לראות במו עיניהם לפני שירד "
        "החושך על החוף ועל הבתים הקטנים שלאורך המים."
    ),
    "Devanagari": (
        "जब पहली नावें लौटीं तब बंदरगाह शांत था। घाट पर कोई नहीं बोला, क्योंकि तूफ़ान दो मछुआरों को ले गया था, और वहाँ "
        "प्रतीक्षा करती स्त्रियाँ गिनना जानती थीं। गाँव में घंटी बजी; किसी ने दूर समुद्र में एक पाल देखा था, और सब लोग "
        "चट्टान की ओर दौड़े ताकि अपनी आँखों से देख सकें।"
    ),
    "Han": (
        "第一批渔船回来的时候，港口一片寂静。码头上没有人说话，因为风暴带走了两个渔民，而在那里等候的妇女们都会数数。"
        "村子里响起了钟声，有人看见远处的海面上有一面帆，大家都跑向礁石，想亲眼看个明白。天色渐渐暗下来，孩子们提着灯笼"
        "站在岸边，老人把绳子一圈一圈地放好。过了很久，那条船终于靠近了，船头站着的人挥了挥手，岸上的人才松了一口气……"
        "后来他们围坐在火堆旁，讲起这一夜的经过（谁也没有再提那场可怕的风暴），只说：“明天还要早起补网！”"
    ),
    "Kana": (
        "最初の船が戻ってきたとき、港は静まりかえっていた。岸壁では誰も口をきかなかった。嵐が二人の漁師を連れ去り、そこで"
        "待つ女たちは数を数えることができたからである。村で鐘が鳴った。はるか沖に帆が見えたという。みんなは自分の目で"
        "確かめようと岩場へ走った。　日が暮れると、子どもたちは「ランプ」を手に浜辺に立ち、老人たちはロープをていねいに"
        "巻いていった。やがて船が近づき、へさきに立つ人が手を振ると、ようやく岸の人びとは胸をなでおろした！（一九八四年）"
    ),
    "Hangul": (
        "첫 배들이 돌아왔을 때 항구는 조용했다. 부두에서는 아무도 말을 하지 않았다. 폭풍이 어부 두 명을 데려갔고, "
        "그곳에서 기다리던 여인들은 수를 셀 줄 알았기 때문이다. 마을에서 종이 울렸다. 누군가 먼 바다에서 돛을 보았다고 "
        "했고, 모두가 제 눈으로 확인하려고 바위 쪽으로 달려갔다. 날이 저물자 아이들은 등불을 들고 바닷가에 섰으며, "
        "노인들은 밧줄을 한 바퀴씩 천천히 감았다."
    ),
    "Thai": (
        "เมื่อเรือลำแรกกลับมาถึง ท่าเรือก็เงียบสงัด ไม่มีใครบนสะพานพูดอะไร เพราะพายุได้พัดเอาชาวประมงไปสองคน "
        "และผู้หญิงที่ยืนรออยู่ที่นั่นก็นับเลขเป็น ในหมู่บ้านมีเสียงระฆังดังขึ้น มีคนเห็นใบเรืออยู่ไกลออกไปในทะเล "
        "ทุกคนจึงวิ่งไปที่โขดหินเพื่อดูให้เห็นกับตาของตนเอง"
    ),
}  # fmt: skip
_UNSPACED = {
    "Han": "第一批渔船回来的时候，港口",
    "Kana": "最初の船が戻ってきたとき、",
    "Thai": "เมื่อเรือลำแรกกลับมาถึง ท่าเรือ",
}
EIGHT_WORDS = {
    script: _UNSPACED.get(script, " ".join(text.split()[:8])) for script, text in PARAGRAPHS.items()
}

HAN = [char for char in PARAGRAPHS["Han"] if units.units(char)[0]]


def acquire_and_filter(folder: Path, texts: list[str], manifest: str = "") -> Path:
    """Clean folder of a JSONL corpus; `manifest` adds lines to one without any setting."""
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "c.yaml").write_text(f"kind: jsonl\nfiles: ['{folder / 'c.jsonl'}']\n{manifest}\n")
    assert main(["acquire", "--manifest", str(folder / "c.yaml"), "--out", str(folder / "raw")]) == 0
    assert main(["filter", str(folder / "raw"), "--out", str(folder / "clean")]) == 0
    return folder / "clean"


def chinese(seed: int, length: int = 900) -> str:
    """Characters of the paragraph in another order, with a mark after every twelfth; no space."""
    rng = random.Random(seed)
    return "".join(rng.choice(HAN) + ("，" if i % 12 == 11 else "") for i in range(length))


def shuffled(script: str, seed: int) -> str:
    """The paragraph's words, or characters, in another order."""
    rng, text = random.Random(seed), PARAGRAPHS[script]
    parts = list(text) if script in _UNSPACED else text.split()
    return ("" if script in _UNSPACED else " ").join(rng.sample(parts, len(parts)))


def test_default_rules_keep_ten_scripts_byte_for_byte(tmp_path: Path) -> None:
    texts = list(PARAGRAPHS.values())
    clean = acquire_and_filter(tmp_path, texts)
    assert [d.text for d in documents.read(clean)] == texts
    record = documents.provenance(clean)
    assert (record["dropped"], record["repaired"]) == ({}, 0)


def test_default_rules_keep_chinese_without_spaces(tmp_path: Path) -> None:
    texts = [chinese(seed) for seed in range(60)]
    assert not any(char.isspace() for text in texts for char in text)
    assert [d.text for d in documents.read(acquire_and_filter(tmp_path, texts))] == texts


@pytest.mark.parametrize("script", PARAGRAPHS)
def test_a_copied_paragraph_is_found_and_eight_words_are_not(script: str, tmp_path: Path) -> None:
    text, few = PARAGRAPHS[script], EIGHT_WORDS[script]
    assert text.startswith(few)
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"question": text}) + "\n")
    decontaminate.build([tmp_path / "quiz.jsonl"], tmp_path)
    rule = decontaminate.rule(tmp_path)
    space = "" if script in _UNSPACED else " "

    def within(part: str) -> Document:
        return Document(space.join([shuffled(script, 1), part, shuffled(script, 2)]), "d")

    found = (False, "evaluation text: quiz")
    assert rule(within(text)) == found
    assert rule(within(few)) is True
    for form in ("NFD", "NFKC"):
        assert rule(within(unicodedata.normalize(form, text))) == found
    assert rule(within("\u200d".join(text))) == found
    assert rule(within(text.upper().replace(" ", "\n"))) == found


@pytest.mark.parametrize(("length", "is_found"), [(137, True), (25, True), (24, False)])
def test_chinese_needs_as_many_characters_as_make_thirteen_words(
    length: int, is_found: bool, tmp_path: Path
) -> None:
    text = "".join(HAN)
    (tmp_path / "e.txt").write_text(text[: max(25, length)])
    decontaminate.build([tmp_path / "e.txt"], tmp_path)
    copied = chinese(1)[:400] + text[:length] + chinese(2)[:400]
    assert (decontaminate.rule(tmp_path)(Document(copied, "d")) is not True) == is_found


def test_hindi_words_are_not_cut_at_their_vowel_signs(tmp_path: Path) -> None:
    """Eight words hold some twenty runs of letters without vowel signs."""
    assert units.units("प्रतीक्षा करती स्त्रियाँ")[0] == ["प्रतीक्षा", "करती", "स्त्रियाँ"]
    assert len(units.units(EIGHT_WORDS["Devanagari"])[0]) == 8


def test_english_within_chinese_is_found(tmp_path: Path) -> None:
    mixed = "这个函数返回两个值：the first is the number of rows that were read，第二个是错误的说明文字。"
    (tmp_path / "e.txt").write_text(mixed)
    decontaminate.build([tmp_path / "e.txt"], tmp_path)
    rule = decontaminate.rule(tmp_path)
    assert rule(Document(chinese(1) + mixed + chinese(2), "d")) == (False, "evaluation text: e")
    assert rule(Document(chinese(1) + "the first is the number of rows" + chinese(2), "d")) is True


@pytest.mark.parametrize(("script", "word"), [("Han", 2), ("Kana", 2), ("Thai", 4)])
def test_near_duplicates_without_spaces(script: str, word: int) -> None:
    """5 % of the words changed leave 0.75 in common, as in English; texts of the same letters stay, however long."""
    letters = [char for char in PARAGRAPHS[script] if units.units(char)[0]]
    rng = random.Random(0)
    originals = ["".join(rng.choices(letters, k=n)) for n in [800] * 20 + [40_000] * 2]
    copies = []
    for text in originals:
        words = [text[i : i + word] for i in range(0, len(text), word)]
        for i in rng.sample(range(len(words)), round(0.05 * len(words))):
            words[i] = "".join(rng.choices(letters, k=word))
        copies.append("".join(words))
    rows = np.zeros(2 * len(originals), dedup.SIGNATURE)
    rows["hashes"], rows["words"] = dedup.minhashes([*originals, *copies])
    agree = (rows["hashes"][:22] == rows["hashes"][22:]).mean(axis=1)
    assert agree.mean() == pytest.approx(0.75, abs=0.03)
    found = dedup.first_like(rows, 0.65)
    assert (found[:22] == np.arange(22)).all()
    assert (found[22:] == np.arange(22)).mean() >= 0.9


def test_passages_of_chinese_lines_are_cut(tmp_path: Path) -> None:
    """24 characters are twelve words; 22 are too few."""
    common, few = "".join(HAN[:24]) + "。", "".join(HAN[30:52]) + "。"
    texts = [f"{chinese(seed)}\n{common}\n{chinese(seed + 50)}\n{few}\n" for seed in range(4)]
    clean = acquire_and_filter(tmp_path, texts, "filter: {passage_lines: 1}")
    found = [d.text for d in documents.read(clean)]
    assert [text.count(common) for text in found] == [1, 0, 0, 0]
    assert [text.count(few) for text in found] == [1, 1, 1, 1]
    assert not passages.keys(few, 1).any()


def test_chinese_without_spaces_through_tokenizer_shards_and_validate(tmp_path: Path) -> None:
    clean = acquire_and_filter(tmp_path, [*(chinese(seed) for seed in range(60)), *PARAGRAPHS.values()])
    tokenizer_training.train({"c": clean}, tmp_path / "tok", 1000)
    tok = Tokenizer.load(tmp_path / "tok")
    for text in ("你 好", " the", "  ", *PARAGRAPHS.values()):
        ids = tok.encode(text)
        assert tok.decode(ids) == text
        assert tok.token_bytes[ids].sum() == len(text.encode())
    assert tok.token_bytes[tok.encode(" ")].tolist() == [1]
    sharding.shard(clean, tmp_path / "tok", tmp_path / "shards" / "c")
    record = validate(tmp_path / "shards", tokenizer_folder=tmp_path / "tok")
    assert record["total"]["bytes"] == documents.provenance(clean)["bytes"]


def test_code_is_never_repaired(tmp_path: Path) -> None:
    """It may test mojibake, or hold a form feed between its parts."""
    code = 'assert len("Ａ") == 1\nassert fix("schÃ¶n") == "schön"\n\f\nBELL = "\x07"\n' + "value = 1\n" * 3
    texts = [code, "# " + PARAGRAPHS["Greek"]]
    clean = acquire_and_filter(tmp_path, texts, "content: code\nfilter: {min_chars: 0}")
    assert [d.text for d in documents.read(clean)] == texts
    assert filters.repair(code) != code
