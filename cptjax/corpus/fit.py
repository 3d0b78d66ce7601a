"""How a tokenizer fits a text: what it needs for it beside what it needs for plain sentences.

It needs fewest tokens for the language that it was made for. Here the same two sentences stand in several languages;
a text is compared with the one of its own letters that the tokenizer needs fewest for. Bytes per token are compared:
they do not ask where a word ends, which Chinese does not say, and long words of a domain leave them as they are.
"""

import unicodedata
from collections import Counter

from cptjax.data.tokenizer import Encoder

SENTENCES = {
    "English": "When the doctor came back in the evening, the children were already asleep, and their mother was "
    "sitting at the window with a letter in her hand. She had read it twice, but she did not know what she should "
    "answer, for it was a long time since anyone had asked her what she wanted.",
    "French": "Quand le médecin revint le soir, les enfants dormaient déjà, et leur mère était assise près de la "
    "fenêtre, une lettre à la main. Elle l'avait lue deux fois, mais elle ne savait pas ce qu'elle devait répondre, "
    "car il y avait longtemps que personne ne lui avait demandé ce qu'elle voulait.",
    "German": "Als der Arzt am Abend zurückkam, schliefen die Kinder schon, und ihre Mutter saß mit einem Brief in der "
    "Hand am Fenster. Sie hatte ihn zweimal gelesen, aber sie wusste nicht, was sie antworten sollte, denn es war "
    "lange her, dass jemand sie gefragt hatte, was sie wollte.",
    "Spanish": "Cuando el médico volvió por la noche, los niños ya dormían, y su madre estaba sentada junto a la "
    "ventana con una carta en la mano. La había leído dos veces, pero no sabía qué debía responder, porque hacía mucho "
    "tiempo que nadie le preguntaba qué quería.",
    "Italian": "Quando il medico tornò la sera, i bambini dormivano già, e la loro madre era seduta vicino alla "
    "finestra con una lettera in mano. L'aveva letta due volte, ma non sapeva che cosa dovesse rispondere, perché era "
    "passato molto tempo da quando qualcuno le aveva chiesto che cosa volesse.",
    "Portuguese": "Quando o médico voltou à noite, as crianças já dormiam, e a mãe estava sentada junto à janela com "
    "uma carta na mão. Ela a tinha lido duas vezes, mas não sabia o que devia responder, porque havia muito tempo que "
    "ninguém lhe perguntava o que queria.",
    "Dutch": "Toen de dokter 's avonds terugkwam, sliepen de kinderen al, en hun moeder zat met een brief in haar hand "
    "bij het raam. Ze had hem twee keer gelezen, maar ze wist niet wat ze moest antwoorden, want het was lang geleden "
    "dat iemand haar had gevraagd wat ze wilde.",
    "Polish": "Kiedy lekarz wrócił wieczorem, dzieci już spały, a ich matka siedziała przy oknie z listem w ręku. "
    "Przeczytała go dwa razy, ale nie wiedziała, co ma odpowiedzieć, bo od dawna nikt jej nie pytał, czego chce.",
    "Russian": "Когда врач вернулся вечером, дети уже спали, а их мать сидела у окна с письмом в руке. Она "
    "прочитала его два раза, но не знала, что ей ответить, потому что уже давно никто не спрашивал её, чего она хочет.",
    "Arabic": "عندما عاد الطبيب في المساء كان الأطفال قد ناموا، وكانت أمهم جالسة عند النافذة وفي يدها رسالة. "
    "لقد قرأتها مرتين، لكنها لم تعرف بماذا تجيب، فقد مضى وقت طويل منذ أن سألها أحد عما تريد.",
    "Chinese": "医生晚上回来的时候，孩子们已经睡着了，他们的母亲坐在窗边，手里拿着一封信。"
    "她已经读了两遍，但是不知道应该怎么回答，因为很久没有人问过她想要什么了。",
    "Japanese": "夜になって医者が戻ってきたとき、子どもたちはもう眠っていて、母親は手紙を手に窓のそばに座っていた。"
    "彼女はそれを二度読んだが、どう答えればよいのかわからなかった。"
    "何が欲しいのかと人に聞かれるのは、ずいぶん久しぶりだったからだ。",
}


def script(text: str) -> str:
    """The script of most letters of a text, as Unicode names it: LATIN, CJK, ...; "" where there are none."""
    scripts = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    return max(scripts, key=lambda name: scripts[name], default="")


def needs(encoder: Encoder) -> dict[str, dict[str, float]]:
    """Tokens per word and bytes per token of the sentences, by language, without those that it knows not all of."""
    ids = [token_L for token_L, _ in encoder.with_offsets(list(SENTENCES.values()))]
    return {
        language: {
            "tokens_per_word": len(token_L) / len(text.split()),
            "bytes_per_token": len(text.encode()) / len(token_L),
        }
        for (language, text), token_L in zip(SENTENCES.items(), ids, strict=True)
        if not (token_L == encoder.special.unk).any()
    }


def compared_with(needed: dict[str, dict[str, float]], text: str) -> str | None:
    """The language that a text is compared with, None where `needed` has none.

    Letters that no sentence has are compared with Latin ones: they take more bytes each, so that nothing is found
    where the tokenizer fits.
    """
    own = script(text)
    scripts = {language: script(SENTENCES[language]) for language in needed}
    alike = [language for language in needed if scripts[language] == own]
    alike = alike or [language for language in needed if scripts[language] == "LATIN"]
    return max(alike, key=lambda language: needed[language]["bytes_per_token"], default=None)
