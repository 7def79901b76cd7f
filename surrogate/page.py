"""One self-contained HTML page: skeleton, style, and a frame player, with nothing fetched from anywhere.

Every text that comes from data passes through `escape`; the page forbids itself, by its own content policy, to load
anything that it does not carry.
"""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["escape", "facts", "figure", "page", "player", "section", "table", "tiles"]

_CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1c2431;--muted:#5c6779;--rule:#dfe4eb;
--accent:#0072b2;--soft:#eaf3f9}
@media(prefers-color-scheme:dark){:root{--bg:#12161d;--card:#1a2029;--ink:#e7ebf1;--muted:#9aa6b8;--rule:#2d3644;
--accent:#56b4e9;--soft:#1d2f3d}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .35rem;letter-spacing:-.015em;text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .25rem;letter-spacing:-.005em}
h3{font-size:1rem;margin:1.5rem 0 .5rem;overflow-wrap:anywhere}
p{margin:.25rem 0 1rem;max-width:72ch}.lead,.note{color:var(--muted)}.note{font-size:.9rem;max-width:100ch}
section{background:var(--card);border:1px solid var(--rule);border-radius:12px;
padding:1.35rem 1.5rem;margin-top:1.25rem}
nav{margin:1.1rem 0 0;font-size:.9rem}nav a{margin-right:1.1rem;color:var(--accent);text-decoration:none}
nav a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:.75rem;margin:1.25rem 0 0}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:.8rem 1rem}
.tile b{display:block;font-size:1.22rem;white-space:nowrap;font-weight:600;
letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:.85rem;line-height:1.35;display:block}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.5rem;margin:.75rem 0 0;font-size:.93rem}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
figure{margin:.5rem 0 0}figure>img{width:100%;height:auto;display:block}
figcaption{color:var(--muted);font-size:.88rem;margin-top:.35rem;max-width:90ch}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .7rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--muted);font-weight:500}th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}
tr:last-child td{border-bottom:0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.75rem 0 0;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
details>summary{cursor:pointer;color:var(--accent)}
.player{display:none}.js .player{display:block}.js .still.replaced{display:none}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,var(--cell)),1fr));gap:.6rem .8rem}
.panel h4{margin:0 0 .25rem;font-size:.88rem;font-weight:500}
.panel canvas{width:100%;display:block;border-radius:6px;image-rendering:pixelated;background:#96989c}
.player.lines canvas{width:100%;height:300px;display:block}
.bar{height:8px;border-radius:4px;margin:.4rem 0 .1rem}
.ends{display:flex;justify-content:space-between;color:var(--muted);font-size:.78rem;font-variant-numeric:tabular-nums}
.controls{display:flex;gap:.9rem;align-items:center;margin:.9rem 0 .4rem}
.controls button{font:inherit;font-size:.9rem;min-width:5.2rem;padding:.35rem .9rem;border-radius:999px;
border:1px solid var(--accent);background:transparent;color:var(--accent);cursor:pointer}
.controls button:hover{background:var(--soft)}
.controls input{flex:1;accent-color:var(--accent)}
.controls output{min-width:7.5rem;text-align:right;font-size:.9rem;font-variant-numeric:tabular-nums}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;color:var(--muted);font-size:.85rem}
.key i{display:inline-block;width:1.3em;height:.28em;border-radius:2px;vertical-align:middle;margin-right:.45em}
footer{color:var(--muted);font-size:.85rem;margin-top:1.5rem}
@media(max-width:560px){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}section{padding:1.1rem}}
@media print{.js .player{display:none}.js .still.replaced{display:block}section{break-inside:avoid}
body{background:#fff}}
"""

_JS = """
document.documentElement.classList.add('js');
const value=n=>getComputedStyle(document.documentElement).getPropertyValue(n).trim();
function sprites(root,spec){
  const jobs=[...root.querySelectorAll('.panel')].map((el,j)=>{
    const s=spec.panels[j],canvas=el.querySelector('canvas'),sheet=new Image();
    canvas.width=s.width;canvas.height=s.height;
    sheet.onload=()=>draw(+root.querySelector('input').value);sheet.src=s.uri;
    return{s,sheet,ctx:canvas.getContext('2d')}});
  const draw=i=>jobs.forEach(({s,sheet,ctx})=>{if(sheet.complete)ctx.drawImage(sheet,(i%s.columns)*s.width,
    Math.floor(i/s.columns)*s.height,s.width,s.height,0,0,s.width,s.height)});
  return draw;
}
function lines(root,spec){
  const canvas=root.querySelector('canvas'),ctx=canvas.getContext('2d'),[lo,hi]=spec.range;
  const draw=i=>{
    const r=window.devicePixelRatio||1,w=canvas.clientWidth,h=canvas.clientHeight,pad=58;
    canvas.width=w*r;canvas.height=h*r;ctx.setTransform(r,0,0,r,0,0);
    const X=x=>pad+(x-spec.x[0])/(spec.x[spec.x.length-1]-spec.x[0])*(w-pad-12);
    const Y=y=>h-30-(y-lo)/(hi-lo)*(h-44);
    ctx.font='12px system-ui,sans-serif';ctx.lineWidth=1;
    for(let k=0;k<=4;k++){const v=lo+(hi-lo)*k/4;ctx.strokeStyle=value('--rule');ctx.beginPath();ctx.moveTo(pad,Y(v));
      ctx.lineTo(w-12,Y(v));ctx.stroke();ctx.fillStyle=value('--muted');ctx.textAlign='right';
      ctx.fillText(+(Math.abs(v)<(hi-lo)*1e-3?0:v).toPrecision(3),pad-8,Y(v)+4)}
    ctx.textAlign='center';ctx.fillText(spec.axis,(pad+w-12)/2,h-8);
    ctx.textAlign='left';ctx.fillText(+spec.x[0].toPrecision(3),pad,h-8);
    ctx.textAlign='right';ctx.fillText(+spec.x[spec.x.length-1].toPrecision(3),w-12,h-8);
    const path=ys=>{let pen=false;ys.forEach((y,k)=>{if(y===null){pen=false;return}
      pen?ctx.lineTo(X(spec.x[k]),Y(y)):ctx.moveTo(X(spec.x[k]),Y(y));pen=true})};
    if(spec.band){const[a,b]=spec.band.map(f=>f[i]);ctx.fillStyle=spec.colours.band;ctx.globalAlpha=.25;
      a.forEach((y,k)=>{if(!k||y===null||a[k-1]===null)return;const[p,q]=[X(spec.x[k-1]),X(spec.x[k])];
        ctx.beginPath();ctx.moveTo(p,Y(a[k-1]));ctx.lineTo(q,Y(y));ctx.lineTo(q,Y(b[k]));ctx.lineTo(p,Y(b[k-1]));ctx.fill()});
      ctx.globalAlpha=1}
    for(const c of spec.curves){ctx.strokeStyle=c.colour==='ink'?value('--ink'):c.colour;ctx.lineWidth=c.width;
      ctx.beginPath();path(c.frames[i]);ctx.stroke()}
  };
  addEventListener('resize',()=>draw(+root.querySelector('input').value));
  matchMedia('(prefers-color-scheme:dark)').addEventListener('change',()=>draw(+root.querySelector('input').value));
  return draw;
}
document.querySelectorAll('.player').forEach(root=>{
  const spec=JSON.parse(root.querySelector('script').textContent);
  const draw=(spec.panels?sprites:lines)(root,spec);
  const slider=root.querySelector('input'),button=root.querySelector('button'),out=root.querySelector('output');
  let timer=null;
  const show=i=>{slider.value=i;out.textContent=spec.labels[i];
    slider.setAttribute('aria-valuetext',spec.labels[i]);draw(i)};
  const stop=()=>{clearInterval(timer);timer=null;button.textContent='Play'};
  slider.addEventListener('input',()=>{stop();show(+slider.value)});
  button.addEventListener('click',()=>{if(timer){stop();return}
    button.textContent='Pause';timer=setInterval(()=>show((+slider.value+1)%spec.labels.length),spec.delay)});
  show(0);
});
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def escape(text: object) -> str:
    """Text for HTML, in elements and in quoted attributes."""
    return html.escape(str(text), quote=True)


def page(title: str, subtitle: str, tiles: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole page. `sections` are (identifier, heading, body); bodies and tiles are HTML, the rest is text."""
    links = "".join(f'<a href="#{escape(i)}">{escape(h)}</a>' for i, h, _ in sections)
    bodies = "\n".join(f'<section id="{escape(i)}"><h2>{escape(h)}</h2>\n{b}\n</section>' for i, h, b in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p class="lead">{escape(subtitle)}</p><nav aria-label="Sections">{links}</nav></header>
{tiles}
{bodies}
<footer>{escape(footer)}</footer>
</main>
<script>{_JS}</script>
</body>
</html>
"""


def section(*parts: str) -> str:
    """Parts of a section's body, one below the other."""
    return "\n".join(p for p in parts if p)


def figure(uri: str, alt: str, caption: str = "", *, kind: str = "") -> str:
    """A picture with its alternative text and, below it, a caption."""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    label = f' class="{escape(kind)}"' if kind else ""
    return f'<figure{label}><img src="{escape(uri)}" alt="{escape(alt)}">{text}</figure>'


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """Headline figures: (value, what it is)."""
    cells = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(t)}</span></div>' for v, t in items)
    return f'<div class="tiles">{cells}</div>' if items else ""


def facts(items: Mapping[str, object]) -> str:
    """A list of terms and values."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items()) + "</dl>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table, the first row its heading."""
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def player(spec: Mapping[str, Any], panels: Sequence[tuple[str, str, str, str, str]], key: str, cell: int) -> str:
    """A frame player: a slider and a button over the frames of `spec`, which is written as JSON.

    `panels` are (title, CSS gradient, lowest, middle, highest value); without any, one canvas shows curves. `key` is
    HTML shown below, `cell` the least width of a panel in pixels.
    """
    bars = "".join(
        f'<div class="panel"><h4>{escape(t)}</h4><canvas role="img" aria-label="{escape(t)}, animated"></canvas>'
        f'<div class="bar" style="background:{escape(g)}"></div>'
        f'<div class="ends"><span>{escape(a)}</span><span>{escape(m)}</span><span>{escape(b)}</span></div></div>'
        for t, g, a, m, b in panels
    )
    stage = f'<div class="panels" style="--cell:{cell}px">{bars}</div>'
    if not panels:
        stage = '<canvas role="img" aria-label="fields over space, animated"></canvas>'
    data = json.dumps(spec, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # so that no text in the data can end the script element
        data = data.replace(character, f"\\u{ord(character):04x}")
    last = len(spec["labels"]) - 1
    return f"""<div class="player{'' if panels else ' lines'}">{stage}
<div class="controls"><button type="button">Play</button>
<input type="range" min="0" max="{last}" value="0" step="1" aria-label="lead time"><output></output></div>{key}
<script type="application/json">{data}</script></div>"""
