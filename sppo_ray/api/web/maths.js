// Text with TeX in it as nodes: words stay text, formulas become MathML (KaTeX), and what it cannot read stays as written.
import { h } from "./dom.js";

const LONGEST = 4000; // characters of one formula
// $$..$$, \[..\], \(..\), an environment, \boxed{..} on its own, and $..$ where it cannot be a price.
const FORMULA =
  /\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|(\\begin\{(align|aligned|equation|gather|array|[pbv]?matrix|cases)\*?\}[\s\S]+?\\end\{\5\*?\})|(\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})|\$(?![\s$])((?:\\.|[^$\n\\])*[^\s$\\]|[^\s$\\])\$(?!\d)/g;

let loading = null;

/** KaTeX, fetched when the first formula shows up. */
function katex() {
  loading ??= new Promise((resolve, reject) => {
    const script = h("script", { src: new URL("vendor/katex.min.js", import.meta.url).href });
    script.addEventListener("load", () => resolve(window.katex));
    script.addEventListener("error", () => reject(new Error("katex.min.js could not be loaded")));
    document.head.append(script);
  });
  return loading;
}

/** [{text}] and [{tex, isBlock, source}] pieces, which together are `text`. */
export function pieces(text) {
  const found = [];
  let end = 0;
  for (const match of text.matchAll(FORMULA)) {
    if (match.index > end) found.push({ text: text.slice(end, match.index) });
    const [source, dollars, brackets, parentheses, environment, , boxed, inline] = match;
    found.push({ tex: dollars ?? brackets ?? parentheses ?? environment ?? boxed ?? inline, isBlock: Boolean(dollars ?? brackets ?? environment), source });
    end = match.index + source.length;
  }
  if (end < text.length) found.push({ text: text.slice(end) });
  return found;
}

export const hasMaths = (text) => pieces(text).some((piece) => piece.tex);

/** `text` as nodes; formulas are drawn once KaTeX is there, until then they stand as written. */
export function readable(text) {
  return pieces(text).map((piece) => (piece.tex ? formula(piece) : piece.text));
}

function formula({ tex, isBlock, source }) {
  const host = h(isBlock ? "span.formula.block" : "span.formula", { title: source }, source);
  if (tex.length <= LONGEST) katex().then((engine) => draw(engine, tex, isBlock, host), () => host.classList.add("unread"));
  return host;
}

function draw(engine, tex, isBlock, host) {
  try {
    engine.render(tex, host, {
      output: "mathml", // the browser's own layout: no fonts to ship, no inline styles that the page's policy forbids
      displayMode: isBlock,
      trust: false, // no links, images or classes from a model
      strict: "ignore",
      maxExpand: 200,
      maxSize: 20,
      macros: { "\\pmb": "\\boldsymbol{#1}", "\\fcolorbox": "\\boxed{#3}" }, // KaTeX draws these two with inline styles
    });
  } catch {
    host.replaceChildren(host.title); // not TeX after all
    host.classList.add("unread");
  }
}
