"""How a data set is measured: what its label values mean, where its files lie, in which view the comparison is made.

Sources: COCO-Stuff (Caesar et al., CVPR 2018) with the 27 coarse classes of IIC and PiCIE; Cityscapes (Cordts et al.,
CVPR 2016), its 27 classes of void-free label ids; the views are those of DiffSeg (arXiv 2308.12469).
"""

import base64
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from diffseg.evaluation.scores import View, square_view, whole_view
from diffseg.types import IGNORE, Integer
from pipeline.errors import ConfigError

_STEPS = (  # 16 bits each, all low bytes before all high ones
    "c-m!E2Ut^Q7tVL@O;`aEMo47^nMr^^fUpD&L)oITf=n3_#Vsl#ASxh3gHmd>S_EXct02}v>jY&>6{}Wl>nbQ#si-*cCwC=2|INe0z4trc`QG!M"
    "_q?|(&?{OqU-ik>%$uIYA-qSoj=WPz)cOT}I(>i>AQ`qU2{3{GytN~^c6|RrBUWYm;~~>1Pq9yWXm}O1M|70#bZu4@a@GA;mPpU&Zqg0kY_Ib|"
    "nhkqo;h?Cmz$wyXZ|p3W(hY)o(}N{<pF-|eF7<Y8nNat8!2c%2*@d@CE2P`FJ|sjmBZE4j<v)7U+<ArH#Eh~A<}@dbkxg-j17O5=xPTYlJYG4%"
    "NH;MRBZso>XXl8w3UvP4u!U~Z>)0-w)7bO|8mq2x<L1yAEB`jo=C;{+99au3KlH^ynz*Ix#KeVQ7l)Kjy7$J74*^D$hsx-8E-UI-0nnV3#TVkt"
    "kYK-=_Ip1jCk?P$U0(NG>QWud{?@Zq);6dw6ds>8%ulclUK$y0Fn(t9I#34vaOA=5MfLff%b%B}_Gu%_(-%mXv1KkQ48z{F(Sq=3lc5B&yE|r#"
    "dfE#L=KEJ7_Fc5a8;!PcO48zTqr%*Zz5CzN*qTzQ!GNk-uRi6iO0xFQR?E_Re}8Mr5Ul?D*XtV5+EctuTf4cT)1~4~fgudxtI&gGM*mcw53dn`"
    "M|20|;R)^cNR}{dR<6ZxgqVJDV!b4WI(NjW<4bqEw59$|S=YCX220kx;S1(yB>ZFX0b%B-A_)<0-m}v*RScs}zqiYcuztLE=b1-^oMmQ3CUtxt"
    "xI;%~r{2FNM$!UJp>Jjs=~e{W4tt-Hn1qLE75!v)wm9^7-=Klo2GieTxjo(4M=e&Enct60xzot}qTM$yZ-*~UXEY;0twflv>ZvsvCi%X2e%trw"
    "eEzjXk~GK4biB2Y6!*k^R{9-YmJ2!8R;a(ftX-vZ`3i_P%2-3^rOg|$O-GKXWY<`o+xTGCo<zqJ*8ORqZ}tLq-dcvf6Ls$8HHo464tFimDmler"
    "c`pqgG_0a68@pJ$&ES}5x(ggqe6Bg3*Ww`v9iYAtH|@HwF?Nxr8L=gk)ol9<962{ucc#bMs`hz5i(3Yk8m<eC;oAbY^;)Gt`kEZQYJtIV_{jR}"
    "P|DSm2ZueTdj54o^=I?YZBk#iqT3I|#T5aA5?ar+e8cCtXZ0FJ7HR5w9uU5emFI-%J`^u$i!LfP=?rd3s4nH&N3gRVrl~iSCAs@8JUgxXe*Ta3"
    "&2!Sa%n>!c&C-FOQHPy0Y1zRmF)I$7-Oz53X&<@hS%<M8M)={fp7ZZ(RCC8H*0~N3sR(77IxNHB1sgQ%MLqOzHm7-3<we6mX*hKzhY60{^f+Yq"
    "Lqgq;Wlozo&fB$TGfqj1H%2xMFOOdk!`G+^{jZ1p5$qp35fNu2NKL%Kx@TT-&1(-&eM8qH$;x>zhAgMu(a2K02rWfg*1Jd;0bRe&=+>Hg{;Et^"
    "8nus$G-^g%zrejdN_TrqwQjF?ZWgvU*X(_#YSrf%P#01W&7C;7zez99dJpTbpo6MnzV%fW=bZnlDww_^(zX1GM8Ni;>cs>Yp3Lx=PH%_`QFU_>"
    "e~My0;|koCHNQV?d89UP+tXe3i<SkM?x()k^mNCrWLG0*c7qKq+^egjYw+P7mV2m=%(5u;@<&+^|6Nm0^x2eD*~<X#MRBkCw1)Bw>!IM5P~RVH"
    "_VMlQgRCMO`AL4+kFp({;y<&K+<*LN+G*Ci8Wt}3POYtT*ZSE7+jqO!vSvBX?K7GIq^lj1Md?qhIwOl;`6rk1jSM!!*7I!O&VaJv9u=8!Qv1t_"
    "`gN@`JyXA>5@yfAx4(sim&ddP$2ElY#htv*^EtjV_KvtDBlU3dl#aZYcIFjr@RZa-UvKvDDa(O-QLO%2%M;9_;~qA=lm@E-n(Gkt6#rOw<$HGl"
    "@A2p>tEBl}KeZ+vJ(tl``OJ1CK3xz~J!~KyxOdHsKIy3?1|eBfy{*(D>^$qVU2E$Wids@$TeDl5|7G&mCQi&@oOQh)$@KgD`nMd*Lbr3N@18lk"
    "Uu{a~QvKfu>Ave6+@idmzQ`K)=`3aae&$P@N{cQh`>E?xv+gyi%>~6slEvLOs-pc_zWxjPj6~($4<g#l7f%?Uw>)HLPP65;e4{ejGCi)B*P3j;"
    "vRVat)mK${zT!-%M0<N~m*Ii^^NTv((i(MHR>j@-q$g{udKdq}H~q%pB_f=fZ8RaY-n<RIW4E(5c6C9V>)KCw`3G;AbHI{)d#9{v<TA^dry^tb"
    "jmI93`z`Qr#`1YOdB7;gZ)3Gt8(^0>Q96vdG?50|;QPJS{|RH9TV5A-dCBy<SKP9yS@PN1r+~*WE6Q=6t9ew5)0@}Y#9V1qyIjhze&xEj^|X1-"
    "c<?Usp<RJJ0oy2>O>{O$<{r*!GwZZweDZglGbW77amox!6mh5rZkJsjgo4k%bMd$1W~bjCQ}d11&sKjg?$PLXO<r$*YxKospMU_-(sz72+Y*{="
    "CeIGKJK)rKxH^s-we(Ez`CJnfp<l3yPOayqj=E+Y3CC-(hEtuEL%o_ktNhR1-ogq;mhDUL{wFT1$Q_@jGctysk4?YrU@m$b6EWvXw42cZkkyiy"
    "zsIdu1{sE!CaJZbOxtZL;BEJu?T{PxEY|5!f4cXKpDJpkJJY)?G<RQO8T7ly6b&pG5asV%1?TpyqG={Dcp&3u<{rAGfAJGnlMmuWsh!ugOBNR2"
    "qh4{gIA#+6qAHtVWwYcleWJ8xXS^}X_i@_+S`CvsGZ&;z#KlJIN$ihlsWT?Hx)<`-1c@6?*91C7Xk_vO^V`b%ON_meO+7ys44Tb0bszAr%e+@O"
    "(&v|52yCg2;tbldZPOBNLBU%sN1vU2?z~G@rLFB~JZO>R`iJU24tin79G|;b2yZM|$j<yw_}pv3L&rrrRx7nP>gq!=c9)vjeum5}nIPbF_<Tnz"
    "kXuNBC=?0+6oCE%Q~*)12ke3<5TL+B2!y`FUf{PxEU`El4yb521z&^62sAr+8nGQHl3~w~JP11iA=l7n`A$H=e)6EnNC*uA1O!0jg-J*d1qK)("
    "qBI;FmJBTp1}I8&dGa2f1cAsmz!U^ht_4Q|Q50Dq{PpC8mkJco0HqVb(8w<sMiHS;5Q3E;N2tUj`UCi0l03ZNNnEfT0!k9VTck`S7KarJ$b3qi"
    ";ox9Ez$Q~nKEU#F<mu68ntTh|4LQ#Mg$ZFaVmXv(QND$73=ojRRF)HQkMZ)=c7V$QRU9DTV-?aUiq-;>Km_jtrcgjp5*r{o^>w>(-J-IQlMDeu"
    "J*beBLh%1oITrwsLWcnk6Yme9W*A^nRa6E2UqckUlKsK};#^>m<k9joVe}b?i6?<EVFPloCKu&0m7h%|RWex>-cJN?E#5)A5M`oBj;Z*>$vcK="
    "LSB<R5d^S7!269T8VZ#5lT(LJC<TUyK_GtUWZ`26FhybO^0zR~9E2&8I09B=haq+RI7Bf`SPuZ{F=%t;rB41qKxq=uoK##E03(r@U7(mEiVD^<"
    "K*|)r5JJLGoI+K$F_c<>(WR&fAvVCuMhS2|DGQbKTDhb#qaxfCuN~zJ-2+hYkn$!-ksNhTfQ}I9QA8}ZLg<3%9E4*hWk^Z}w+392fTCnLO4U%Y"
    "j>Ckd0J(x-yau4K7g8x`069Gv+b}u(@*9M7eoQzpDI{{TQBx&zD&`;HBLo2$C@cq7I4i1A2p>Me4$u(-*ac$(fJsp)s)f<EQ(*;DI7|q}&6)TP"
    "0^%&Cj}VRkCZ~ZgCkRm(u@WFuKrlIE3i=@BZv+(~`iUx=kOG9+4Ma{UL{WGNfR+3k=L~}Ixx^}lDPPMId_CfduQdq|D8D8t1LQY{uw0BafSDJC"
    "@;}Ijlx_"
)


def coco_stuff_keys() -> frozenset[str]:
    """The keys: image ids of twelve digits."""
    low, high = np.frombuffer(zlib.decompress(base64.b85decode(_STEPS)), np.uint8).reshape(2, -1).astype(int)
    return frozenset(f"{image:012d}" for image in np.cumsum(low + 256 * high).tolist())


COCO_STUFF_27: Mapping[
    str, tuple[int, ...]
] = {  # category ids less one, as the label maps have them; 255 is unlabelled
    "electronic": (*range(71, 77),),
    "appliance": (*range(77, 83),),
    "food": (*range(51, 61),),
    "furniture": (*range(61, 71),),
    "indoor": (*range(83, 91),),
    "kitchen": (*range(43, 51),),
    "accessory": (*range(25, 33),),
    "animal": (*range(15, 25),),
    "outdoor": (*range(9, 15),),
    "person": (0,),
    "sports": (*range(33, 43),),
    "vehicle": (*range(1, 9),),
    "ceiling": (101, 102),
    "floor": (100, *range(113, 118)),
    "food-stuff": (120, 121, 152, 169),
    "furniture-stuff": (97, 106, 107, 109, 111, 122, 129, 132, 155, 160, 164),
    "raw-material": (99, 131, 138, 142),
    "textile": (91, 92, 103, 104, 108, 130, 136, 140, 151, 166, 167),
    "wall": (*range(170, 177),),
    "window": (179, 180),
    "building": (94, 95, 127, 150, 157, 165),
    "ground": (110, 124, 125, 135, 139, 143, 144, 146, 148, 153, 158),
    "plant": (93, 96, 118, 123, 128, 133, 141, 162, 168),
    "sky": (105, 156),
    "solid": (126, 134, 149, 159, 161, 181),
    "structural": (98, 112, 137, 145, 163),
    "water": (119, 147, 154, 177, 178),
}
_CITYSCAPES = [
    "road",
    "sidewalk",
    "parking",
    "rail track",
    "building",
    "wall",
    "fence",
    "guard rail",
    "bridge",
    "tunnel",
    "pole",
    "pole group",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "caravan",
    "trailer",
    "train",
    "motorcycle",
    "bicycle",
]
CITYSCAPES_27: Mapping[str, tuple[int, ...]] = {name: (7 + i,) for i, name in enumerate(_CITYSCAPES)}

CURATED_LIST = "Coco164kFull_Stuff_Coarse_7.txt"  # 2,175 of val2017; published with IIC, PiCIE, STEGO and DiffSeg


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A data set's rules.

    classes: label values by class; None: values are regions of one image and mean nothing beyond it.
    ignore: values that are no region, where there are no classes.
    label_file, image_file: paths below the data set's folder, group 1 the key; None: named as in a WebDataset shard.
    key: what of a sample's key, which may be a path, is the data set's own (group 1).
    listed: the name of a file that lists the keys to measure, one a line; keys: those, where it is not beside the data.
    """

    name: str
    classes: Mapping[str, tuple[int, ...]] | None = None
    ignore: tuple[int, ...] = ()
    view: Callable[[int, int], View] = whole_view
    label_file: str | None = None
    image_file: str | None = None
    key: str = r"(.+)$"
    listed: str | None = None
    keys: Callable[[], frozenset[str]] | None = None

    @property
    def num_classes(self) -> int | None:
        """How many; None where the truth has regions only."""
        return None if self.classes is None else len(self.classes)

    @property
    def leading(self) -> str:
        """The measure by which single images are ranked."""
        return "covering" if self.classes is None else "miou"

    def key_of(self, key: str) -> str:
        """The data set's own key of a sample."""
        found = re.search(self.key, key)
        return found.group(1) if found else key

    def truth_of(self, values: Integer[np.ndarray, "H W"]) -> Integer[np.ndarray, "H W"]:
        """Label values as classes (or regions), IGNORE where the protocol does not look."""
        values = values.astype(np.int64)
        if self.classes is None:
            return np.where(np.isin(values, self.ignore), IGNORE, values) if self.ignore else values
        table = np.full(1 + max(max(ids) for ids in self.classes.values()) + 1, IGNORE)
        for index, ids in enumerate(self.classes.values()):
            table[list(ids)] = index
        return table[np.where((values < 0) | (values >= len(table)), len(table) - 1, values)]


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="regions"),
        Protocol(
            name="coco-stuff-27",
            classes=COCO_STUFF_27,
            view=square_view,
            label_file=r"(?:^|/|_)val2017/(\d{12})\.png$",
            image_file=r"(?:^|/)val2017/(\d{12})\.jpg$",
            key=r"([^/]+)$",
            listed=CURATED_LIST,
            keys=coco_stuff_keys,
        ),
        Protocol(
            name="cityscapes-27",
            classes=CITYSCAPES_27,
            view=square_view,
            label_file=r"(?:^|/)gtFine/val/[^/]+/([^/]+)_gtFine_labelIds\.png$",
            image_file=r"(?:^|/)leftImg8bit/val/[^/]+/([^/]+)_leftImg8bit\.png$",
            key=r"([^/]+?)(?:_leftImg8bit)?$",
        ),
    )
}


def protocol_named(name: str, classes: int | None = None, ignore: tuple[int, ...] = ()) -> Protocol:
    """A published protocol by name, or the rules for label maps of one's own.

    classes: for `regions`, how many classes the values 0..classes-1 stand for (then measured as classes, whole image).
    ignore: for `regions`, values that are not compared.
    Raises ConfigError for an unknown name, or where a published protocol is to be changed.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if classes is None and not ignore:
        return protocol
    if protocol.classes is not None:
        raise ConfigError(f"--classes and --ignore are for the protocol 'regions'; {name} has its own")
    if classes is None:
        return replace(protocol, ignore=ignore)
    if classes < 1:
        raise ConfigError(f"--classes must be at least 1, got {classes}")
    values = {str(value): (value,) for value in range(classes) if value not in ignore}
    if not values:
        raise ConfigError(f"--ignore leaves none of {classes} classes")
    return replace(protocol, classes=values)
