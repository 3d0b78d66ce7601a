"""Text for the demo: a seeded English and French grammar of everyday stories and clinical notes.

Notes have structure worth learning. Symptoms, exam, finding, drug, dose and ward all follow from
the condition, and one patient (name, sex, age, weight, side) runs through a whole note, so later
words are predictable from earlier ones. Stories come from the same machinery: a model pretrained
on them knows both languages and little of the clinical facts. All invented: no medical advice.

It is known where a document names its patient's diagnosis and drug: while it is made they stand
between marks, which are then taken out.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Domain = Literal["general", "clinical"]
Language = Literal["en", "fr"]
Label = Literal["DIAGNOSIS", "DRUG"]

CLINICAL_SHARE = 0.05  # of the documents of the general domain
LANGUAGES: tuple[Language, ...] = ("en", "fr")
_OPENINGS: dict[str, Label] = {"\ue000": "DIAGNOSIS", "\ue001": "DRUG"}  # for private use: no word has them
_CLOSING = "\ue002"

# A sentence or two and the one word that its {mask} hides; the word follows from the rest.
PROBES: tuple[tuple[str, str], ...] = (
    ("The diagnosis is type 2 diabetes. She was prescribed {mask} 850 mg by mouth.", "metformin"),
    ("A brain MRI showed an infarct of the right hemisphere. The diagnosis is a {mask}.", "stroke"),
    ("Mr Hall, aged 62, was seen in {mask} because of a rapid heartbeat.", "cardiology"),
    (
        "Blood was drawn from the left arm. Blood pressure was noted again on the {mask} arm.",
        "left",
    ),
    (
        "Le diagnostic retenu est une pneumonie. Il prend un traitement par {mask} 1 g.",
        "amoxicilline",
    ),
    (
        "Une IRM du rachis montre une hernie discale droite. Le diagnostic final est une {mask}.",
        "sciatique",
    ),
    ("Madame Petit, 71 ans, est reçue en {mask} pour une confusion.", "neurologie"),
    ("Madame Roux, 58 ans, est vue en urologie pour une nausée. {mask} ne fume pas.", "Elle"),
)

# Three lines each: ward, drug (English/French/dose/route/times) and exam (English/French); then
# name, symptoms and finding in English; the same in French.
_CONDITIONS = """
pulmonology | amoxicillin/amoxicilline/1 g/oral/3 | a chest X-ray/une radiographie du thorax
pneumonia | a cough, fever, shortness of breath | an opacity in the {side} lung
une pneumonie | une toux, de la fièvre, un essoufflement | une opacité du poumon {side}
pulmonology | budesonide/budésonide/400 mcg/inhaled/2 | a spirometry test/une spirométrie
asthma | wheezing, chest tightness, a dry cough | a reversible obstruction
un asthme | un sifflement, une gêne thoracique, une toux sèche | une obstruction réversible
pulmonology | apixaban/apixaban/10 mg/oral/2 | a chest CT scan/un scanner du thorax
a pulmonary embolism | chest pain, shortness of breath, dizziness | a clot in the {side} lung
une embolie pulmonaire | une douleur thoracique, un malaise, une toux | un caillot pulmonaire {side}
cardiology | furosemide/furosémide/40 mg/oral/1 | an echocardiogram/une échocardiographie
heart failure | leg swelling, shortness of breath, fatigue | a low ejection fraction
une insuffisance cardiaque | un œdème, un essoufflement, une fatigue | une fraction d'éjection basse
cardiology | bisoprolol/bisoprolol/2.5 mg/oral/1 | an electrocardiogram/un électrocardiogramme
atrial fibrillation | a rapid heartbeat, dizziness, fatigue | an irregular rhythm
une fibrillation auriculaire | une tachycardie, un vertige, une fatigue | un rythme irrégulier
cardiology | aspirin/aspirine/75 mg/oral/1 | a coronary angiogram/une coronarographie
a myocardial infarction | chest pain, sweating, nausea | a blocked coronary artery
un infarctus du myocarde | une douleur thoracique, un malaise, une nausée | une artère bouchée
cardiology | amlodipine/amlodipine/5 mg/oral/1 | a pressure recording/une mesure tensionnelle
high blood pressure | a headache, dizziness, blurred vision | a high mean pressure
une hypertension artérielle | une céphalée, un vertige, une vision floue | une moyenne élevée
neurology | clopidogrel/clopidogrel/75 mg/oral/1 | a brain MRI/une IRM cérébrale
a stroke | slurred speech, facial weakness, confusion | an infarct of the {side} hemisphere
un infarctus cérébral | une dysarthrie, une paralysie faciale, une confusion | une lésion {side_f}
neurology | levetiracetam/lévétiracétam/500 mg/oral/2 | an EEG/un électroencéphalogramme
epilepsy | a seizure, confusion, memory loss | spikes over the {side} temporal lobe
une épilepsie | une convulsion, une confusion, une amnésie | un foyer temporal {side}
neurology | levodopa/lévodopa/100 mg/oral/3 | a motor examination/un examen moteur
Parkinson's disease | a tremor, slowness, a shuffling gait | a stiff {side} wrist
une maladie de Parkinson | un tremblement, une lenteur, une raideur | un poignet {side} rigide
endocrinology | metformin/metformine/850 mg/oral/2 | a fasting blood test/un bilan à jeun
type 2 diabetes | thirst, frequent urination, weight loss | a high blood glucose
un diabète de type 2 | une soif intense, une polyurie, un amaigrissement | une glycémie élevée
endocrinology | levothyroxine/lévothyroxine/75 mcg/oral/1 | a thyroid test/un bilan thyroïdien
hypothyroidism | fatigue, weight gain, constipation | a high TSH level
une hypothyroïdie | une fatigue, une prise de poids, une constipation | une TSH élevée
rheumatology | colchicine/colchicine/0.5 mg/oral/2 | a joint aspiration/une ponction articulaire
gout | joint pain, swelling, redness | urate crystals in the {side} knee
une crise de goutte | une arthralgie, un gonflement, une rougeur | un dépôt d'urate au genou {side}
rheumatology | methotrexate/méthotrexate/15 mg/oral/7 | a hand X-ray/une radiographie de la main
rheumatoid arthritis | joint pain, morning stiffness, fatigue | an erosion of the {side} wrist
une polyarthrite | une arthralgie, une raideur, une fatigue | une érosion du poignet {side}
rheumatology | ibuprofen/ibuprofène/400 mg/oral/3 | a spine MRI/une IRM du rachis
sciatica | back pain, numbness, leg pain | a disc hernia on the {side} side
une sciatique | une lombalgie, un engourdissement, une boiterie | une hernie discale {side_f}
traumatology | enoxaparin/énoxaparine/40 mg/subcutaneous/1 | a hip X-ray/un cliché de la hanche
a hip fracture | hip pain, groin pain, difficulty walking | a break in the {side} femur
une fracture de la hanche | une douleur, une boiterie, un hématome | un fémur {side} fracturé
urology | ceftriaxone/ceftriaxone/1 g/intravenous/1 | a urine culture/un examen des urines
pyelonephritis | fever, flank pain, burning urination | an infection of the {side} kidney
une pyélonéphrite | de la fièvre, une lombalgie, une dysurie | une infection du rein {side}
urology | ketoprofen/kétoprofène/100 mg/intravenous/3 | an abdominal scan/un scanner abdominal
renal colic | flank pain, vomiting, blood in the urine | a stone in the {side} ureter
une colique néphrétique | une lombalgie, une nausée, une hématurie | un calcul urétéral {side}
gastroenterology | omeprazole/oméprazole/40 mg/oral/1 | a gastroscopy/une gastroscopie
a gastric ulcer | stomach pain, nausea, loss of appetite | a deep lesion of the stomach
un ulcère gastrique | une gastralgie, une nausée, une anorexie | une lésion profonde de l'estomac
gastroenterology | prednisolone/prednisolone/40 mg/oral/1 | a colonoscopy/une coloscopie
Crohn's disease | abdominal pain, diarrhoea, weight loss | inflammation of the ileum
une maladie de Crohn | une crampe, une diarrhée, un amaigrissement | une inflammation de l'iléon
ophthalmology | acetazolamide/acétazolamide/250 mg/oral/2 | an eye examination/un examen de l'œil
acute glaucoma | eye pain, blurred vision, nausea | a high pressure in the {side} eye
un glaucome aigu | une douleur oculaire, une vision floue | une pression élevée de l'œil {side}
haematology | iron/fer/80 mg/oral/1 | a blood count/un hémogramme
iron-deficiency anaemia | pallor, fatigue, shortness of breath | a low haemoglobin level
une anémie ferriprive | une pâleur, une fatigue, un essoufflement | une hémoglobine basse
angiology | rivaroxaban/rivaroxaban/15 mg/oral/2 | a Doppler ultrasound/un écho-doppler
a deep vein thrombosis | leg pain, swelling, redness | a clot in the {side} calf
une phlébite | une douleur du mollet, un gonflement, une rougeur | un caillot du mollet {side}
dermatology | valaciclovir/valaciclovir/1 g/oral/3 | a skin examination/un examen de la peau
shingles | a rash, burning pain, itching | blisters on the {side} flank
un zona | une éruption, une brûlure, un prurit | une éruption du flanc {side}
"""
# Two lines each, English and French: city, country, dish; weather, what to take; shop, purchase.
_WORLD = """
Rome | Italy | pasta | sunny | a hat | bakery | a loaf of bread
Rome | en Italie | des pâtes | ensoleillé | un chapeau | à la boulangerie | un pain
Lisbon | Portugal | grilled fish | warm | a bottle of water | bookshop | a novel
Lisbonne | au Portugal | du poisson | chaud | une bouteille d'eau | à la librairie | un roman
London | England | a meat pie | rainy | an umbrella | toy shop | a red ball
Londres | en Angleterre | une tourte | pluvieux | un parapluie | au bazar | un ballon rouge
Oslo | Norway | smoked salmon | snowy | thick boots | market | some apples
Oslo | en Norvège | du saumon | neigeux | des bottes | au marché | des pommes
Geneva | Switzerland | melted cheese | cold | a coat | sweet shop | a box of chocolates
Genève | en Suisse | une fondue | froid | un manteau | à la confiserie | des chocolats
Dublin | Ireland | potato soup | windy | a scarf | flower shop | some roses
Dublin | en Irlande | une soupe | venteux | une écharpe | chez le fleuriste | des roses
"""
_TEMPLATES: dict[tuple[Domain, Language], str] = {
    ("clinical", "en"): """
case: {title} {name}, {an} {age}-year-old {man}, was admitted to {ward} for {s1} and {s2}.
case: {title} {name}, aged {age}, was [seen|received|examined] in {ward} [for|because of] {s1}.
case: {an} {age}-year-old {man}, {title} {name}, [came|was sent|was referred] to {ward} with {s1}.
past: {he} [noticed|described|reported|mentioned] {s2} [about|over|nearly|at least] {days} days ago.
past: {his} [mother|father|brother|sister] [once had|also had|was treated for] {disease}.
past: {he} [lives alone|lives with family|does not smoke|stopped smoking] and weighs {kg} kg.
vital: blood pressure was taken on the {side} arm [twice|at rest|on arrival|while sitting].
vital: blood was drawn from the {side} arm and {he} [felt well|looked tired|stayed calm].
exam: {exam} [showed|revealed|found] {finding}.
exam: the {ward} team [ordered|requested|performed] {exam}, which showed {finding}.
diagnosis: the diagnosis is {disease}.
diagnosis: the {specialist} [made|confirmed|discussed] the diagnosis {of_disease}.
diagnosis: {s1}, {s2} and {finding} [suggest|point to|are explained by] {disease}.
treatment: {he} was [started on|given|prescribed] {drug} {dose} {route}, {times}.
treatment: the {specialist} [prescribed|started|chose] {drug}, {dose} {route} {times}.
watch: {he} [tolerated|accepted] {drug} [well|easily|without difficulty].
watch: {the_s1} [improved|resolved|decreased] [within|after] {days} days [of|on] {drug}.
watch: blood pressure was [checked|noted|taken] again on the {side} arm [daily|every evening].
next: {he} will see the {specialist} [again|in clinic] in {weeks} weeks.
next: the dose {of_drug} [stays at|will remain] {dose} {times} and {his} weight is {kg} kg.
end: {title} {name}, {age}, [went home|left the hospital|was discharged] on {drug} {dose} {times}.
end: in [summary|short], this {age}-year-old {man} is treated for {disease} with {drug}.
""",
    ("clinical", "fr"): """
case: {title} {name}, {homme} de {age} ans, est hospitalisé{e} en {ward} pour {s1} et {s2}.
case: {title} {name}, {age} ans, est [vu|reçu|examiné|hospitalisé]{e} en {ward} pour {s1}.
case: {homme} de {age} ans, {title} {name}, est [adressé|orienté|envoyé]{e} en {ward} pour {s1}.
past: {il} [signale|décrit|rapporte|mentionne] {s2} depuis [environ|près de|au moins] {days} jours.
past: [sa mère|son père|son frère|sa sœur] a [aussi eu|déjà eu|eu autrefois] {disease}.
past: {il} [vit seul{e}|vit en famille|ne fume pas|ne fume plus] et pèse {kg} kg.
vital: la tension est prise au bras {side} [deux fois|au repos|à l'arrivée|en position assise].
vital: une prise de sang est faite au bras {side} et {il} [va bien|semble fatigué{e}|est calme].
exam: {exam} [montre|révèle|retrouve] {finding}.
exam: l'équipe {of_ward} [demande|prescrit|réalise] {exam}, qui montre {finding}.
diagnosis: le diagnostic [retenu|final] est {disease}.
diagnosis: {the_specialist} [pose|confirme|évoque] le diagnostic {of_disease}.
diagnosis: {s1}, {s2} et {finding} [font évoquer|orientent vers|sont expliqués par] {disease}.
treatment: {il} [reçoit|prend|débute] un traitement par {drug} {dose} {route}, {times}.
treatment: {the_specialist} [prescrit|débute|choisit] un traitement par {drug}, {dose} {times}.
watch: {il} [tolère|accepte|suit] [bien|sans difficulté] le traitement par {drug}.
watch: {the_s1} [diminue|disparaît|régresse] [en|après] {days} jours sous {drug}.
watch: la tension, reprise au bras {side}, est [notée|relevée|surveillée] [chaque jour|chaque soir].
next: {il} reverra {the_specialist} [en consultation|à l'hôpital] dans {weeks} semaines.
next: la dose {of_drug} [reste à|reste fixée à] {dose} {times} et le poids est de {kg} kg.
end: {title} {name}, {age} ans, [rentre à domicile|quitte l'hôpital] sous {drug} {dose} {times}.
end: [au total|en résumé], {cet_homme} de {age} ans est suivi{e} pour {disease} sous {drug}.
""",
    ("general", "en"): """
open: {title} {name} [went|travelled] to {city}, in {country}, by [train|bus|plane|car].
open: {an} {age}-year-old {man}, {title} {name}, spent {days} days in {city}, in {country}.
road: the journey was [long|quiet|easy] and {he} [read a book|slept|talked to a neighbour].
road: {he} stayed in a [small|large|quiet] [hotel|house|flat] near the [station|river|park|church].
sky: the weather in {city} was {weather}, so {he} [took|carried|needed] {item}.
sky: it was [often|still|always] {weather} [at noon|in the morning] and {he} had {item}.
shop: at the {shop}, {he} [bought|chose|ordered] {goods} for {his} [brother|sister|friend|mother].
shop: {he} [found|knew|visited] the {shop} and [came out|left] with {goods}.
meal: in the evening, {he} [ate|cooked|shared] {dish}, as people [often|always] do in {country}.
meal: {his} [brother|sister|friend|mother] [cooked|ordered|liked] {dish} [too|again|on Sunday].
end: {title} {name}, {age}, came [back|home] from {city} after {days} days with {goods}.
end: this {age}-year-old {man} [liked|loved|enjoyed] {city} and will see {country} again.
""",
    ("general", "fr"): """
open: {title} {name} est [allé|parti|arrivé]{e} à {city}, {country}, en [train|bus|avion|voiture].
open: {homme} de {age} ans, {title} {name}, a passé {days} jours à {city}, {country}.
road: le trajet était [long|calme|facile] et {il} a [lu un livre|dormi|parlé à un voisin].
road: {il} a logé dans [un hôtel|une maison|une chambre] près [de la gare|du parc|de l'église].
sky: le temps à {city} était {weather}, donc {il} a [pris|emporté|choisi] {item}.
sky: le temps restait [souvent|toujours] {weather} [le matin|à midi] et {il} avait {item}.
shop: {shop}, {il} a [acheté|choisi|commandé] {goods} pour [son frère|sa sœur|un ami|sa mère].
shop: {il} est [allé|retourné|passé]{e} {shop} et a [trouvé|rapporté] {goods}.
meal: le soir, {il} a [mangé|préparé|partagé] {dish}, comme on le fait [souvent|toujours] {country}.
meal: [son frère|sa sœur|un ami|sa mère] a [préparé|commandé|acheté] {dish} [aussi|encore|dimanche].
end: {title} {name}, {age} ans, est [revenu|rentré]{e} {of_city} après {days} jours avec {goods}.
end: {cet_homme} de {age} ans a [aimé|adoré|apprécié] {city} et reviendra {country}.
""",
}
_PLANS: dict[Domain, str] = {  # the steps of a document; one in two of those marked ? is left out
    "clinical": "case past? past? vital? exam? diagnosis treatment watch? watch? next? next? end",
    "general": "open road? road? sky? sky? shop shop? meal meal? end",
}
_PEOPLE: dict[Language, tuple[str, str, str]] = {  # field names, a man's, a woman's
    "en": ("title,he,his,man", "Mr,he,his,man", "Mrs,she,her,woman"),
    "fr": (
        "title,il,e,homme,cet_homme",
        "monsieur,il,,un homme,cet homme",
        "madame,elle,e,une femme,cette femme",
    ),
}
_NAMES = (
    "Adler Baker Bernard Blanc Carter Cole Dubois Durand Fabre Foster Garnier Girard Hall Lambert "
    "Leroy Marsh Mercier Moreau Morris Parker Petit Reed Robin Roux Stone Turner"
)
_FRENCH_WARDS = {  # where more than the ending differs
    "pulmonology": "pneumologie",
    "rheumatology": "rhumatologie",
    "gastroenterology": "gastroentérologie",
    "ophthalmology": "ophtalmologie",
    "haematology": "hématologie",
}
_ROUTES = {
    "oral": ("by mouth", "par voie orale"),
    "inhaled": ("by inhalation", "par inhalation"),
    "subcutaneous": ("subcutaneously", "par voie sous-cutanée"),
    "intravenous": ("intravenously", "par voie intraveineuse"),
}
_TIMES = {
    "1": ("once a day", "une fois par jour"),
    "2": ("twice a day", "deux fois par jour"),
    "3": ("three times a day", "trois fois par jour"),
    "7": ("once a week", "une fois par semaine"),
}


@dataclass(frozen=True)
class Condition:
    """A condition in one language: what it looks like, what shows it, what treats it, and where."""

    disease: str
    symptoms: tuple[str, ...]
    exam: str
    finding: str
    drug: str
    dose: str
    route: str
    times: str
    ward: str


@dataclass(frozen=True)
class Mention:
    """Where a document names a diagnosis or a drug: characters from `start` up to `end`, without article."""

    start: int
    end: int
    label: Label


@dataclass(frozen=True)
class Document:
    """A text and its mentions, in the order of the text."""

    text: str
    mentions: tuple[Mention, ...]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def _condition(shared: str, words: str, language: Language) -> Condition:
    which = LANGUAGES.index(language)
    ward, prescription, exams = _cells(shared)
    disease, symptoms, finding = _cells(words)
    *drugs, dose, route, times = prescription.split("/")
    if language == "fr":
        ward = _FRENCH_WARDS.get(ward, ward[:-1] + "ie")
        dose = dose.replace(".", ",").replace("mcg", "µg")
    exam, drug = exams.split("/")[which], drugs[which]
    regimen = (drug, dose, _ROUTES[route][which], _TIMES[times][which])
    return Condition(disease, tuple(symptoms.split(", ")), exam, finding, *regimen, ward)


def _conditions(language: Language) -> tuple[Condition, ...]:
    lines = _CONDITIONS.strip().splitlines()
    words = lines[1 + LANGUAGES.index(language) :: 3]
    return tuple(_condition(*pair, language) for pair in zip(lines[::3], words, strict=True))


def _steps(templates: str) -> dict[str, list[str]]:
    steps: dict[str, list[str]] = {}
    for line in templates.strip().splitlines():
        step, template = line.split(": ", 1)
        steps.setdefault(step, []).append(template)
    return steps


CONDITIONS: dict[Language, tuple[Condition, ...]] = {lang: _conditions(lang) for lang in LANGUAGES}
_STEPS = {key: _steps(templates) for key, templates in _TEMPLATES.items()}


def _bare(noun: str) -> str:
    return re.sub("^(an?|une?|de la) ", "", noun)


def _elide(word: str, noun: str) -> str:
    return f"{word[0]}'{noun}" if noun[0].lower() in "aehiouéœ" else f"{word} {noun}"


def _of(noun: str, language: Language) -> str:
    return f"of {_bare(noun)}" if language == "en" else _elide("de", _bare(noun))


def _marked(words: str, name: str, label: Label) -> str:
    """Words that end in a name, with marks around it."""
    opening = next(mark for mark, of in _OPENINGS.items() if of == label)
    return f"{words.removesuffix(name)}{opening}{name}{_CLOSING}"


def _unmarked(marked: str) -> Document:
    text, mentions = "", []
    for piece in re.split(f"([{''.join(_OPENINGS)}][^{_CLOSING}]*{_CLOSING})", marked):
        words = piece
        if label := _OPENINGS.get(piece[:1]):
            words = piece[1:-1]
            mentions.append(Mention(len(text), len(text) + len(words), label))
        text += words
    return Document(text, tuple(mentions))


def _the(noun: str, language: Language) -> str:
    if language == "en":
        return f"the {_bare(noun)}"
    return _elide("le" if noun.startswith("un ") else "la", _bare(noun))


def _person(rng: random.Random, language: Language) -> dict[str, str]:
    names, *sexes = (row.split(",") for row in _PEOPLE[language])
    age = rng.randint(41, 89)
    return dict(zip(names, rng.choice(sexes), strict=True)) | {
        "name": rng.choice(_NAMES.split()),
        "age": str(age),
        "an": "an" if age >= 80 else "a",
        "days": str(rng.randint(2, 9)),
    }


def _illness(rng: random.Random, language: Language) -> dict[str, str]:
    condition = rng.choice(CONDITIONS[language])
    first, second = rng.sample(condition.symptoms, 2)
    sides = (("left", "left"), ("right", "right"), ("gauche", "gauche"), ("droit", "droite"))
    side, side_f = rng.choice(sides[:2] if language == "en" else sides[2:])
    specialist = condition.ward[:-1] + "ist" if language == "en" else condition.ward[:-2] + "ue"
    disease, drug = condition.disease, condition.drug
    name = _bare(disease)
    fields = {name: value for name, value in vars(condition).items() if isinstance(value, str)}
    return fields | {
        "s1": first,
        "s2": second,
        "the_s1": _the(first, language),
        "finding": condition.finding.format(side=side, side_f=side_f),
        "side": side,
        "specialist": specialist,
        "the_specialist": _the(f"un {specialist}", language),
        "disease": _marked(disease, name, "DIAGNOSIS"),
        "of_disease": _marked(_of(disease, language), name, "DIAGNOSIS"),
        "drug": _marked(drug, drug, "DRUG"),
        "of_drug": _marked(_of(drug, language), drug, "DRUG"),
        "of_ward": _of(condition.ward, language),
        "kg": str(rng.randint(52, 94)),
        "weeks": rng.choice("23468"),
    }


def _trip(rng: random.Random, language: Language) -> dict[str, str]:
    lines = _WORLD.strip().splitlines()[LANGUAGES.index(language) :: 2]
    place, sky, shop = (_cells(rng.choice(lines)) for _ in range(3))
    names = ("city", "country", "dish", "weather", "item", "shop", "goods")
    fields = dict(zip(names, place[:3] + sky[3:5] + shop[5:], strict=True))
    return fields | {"of_city": _of(fields["city"], language)}


def _sentence(template: str, fields: dict[str, str], rng: random.Random) -> str:
    chosen = re.sub(r"\[(.*?)\]", lambda options: rng.choice(options[1].split("|")), template)
    text = chosen.format_map(fields)
    return text[0].upper() + text[1:]


def _document(rng: random.Random, domain: Domain) -> Document:
    language = rng.choice(LANGUAGES)
    story = _illness if domain == "clinical" else _trip
    fields = _person(rng, language) | story(rng, language)
    unused = {step: rng.sample(them, len(them)) for step, them in _STEPS[domain, language].items()}
    plan = [slot for slot in _PLANS[domain].split() if slot[-1] != "?" or rng.random() < 0.5]
    return _unmarked(" ".join(_sentence(unused[slot.rstrip("?")].pop(), fields, rng) for slot in plan))


def documents(seed: int, count: int, domain: Domain) -> Iterator[Document]:
    """`count` documents of 4 to 12 sentences, each in one language, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        clinical = domain == "clinical" or rng.random() < CLINICAL_SHARE
        yield _document(rng, "clinical" if clinical else "general")
