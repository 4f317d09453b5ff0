// The sampler's filters, once more in the browser: temperature, top-k, top-p, in that order.
// tinyllm/sampler.py is the definition; tests/web/filters.json holds both to the same cases.

/**
 * What the filters leave of a distribution, of which the best logits are known exactly.
 *
 * @param {ArrayLike<number>} ids of the best tokens, best first
 * @param {ArrayLike<number>} logits of those
 * @param {{low: number, high: number, counts: number[], exp_sums: number[]} | null} tail the rest
 * @param {{temperature: number, top_k: number, top_p: number}} params
 * @returns {{tokens: {id: number, logit: number, pRaw: number, p: number, cutBy: string | null}[],
 *   complete: boolean}} `complete`: nothing outside of `tokens` could be drawn
 */
export function filtered(ids, logits, tail, params) {
  const n = ids.length;
  const best = logits[0];
  const rawTail = tail ? tail.exp_sums.reduce((a, b) => a + b, 0) : 0;
  const raw = Array.from(logits, (x) => Math.exp(x - best));
  const rawSum = raw.reduce((a, b) => a + b, 0) + rawTail;
  const cutBy = new Array(n).fill(null);

  const greedy = params.temperature === 0;
  const scale = greedy ? 1 : Math.fround(params.temperature);
  let first = 0; // greedy takes the first id among equals, as argmax does
  for (let i = 1; i < n && logits[i] === best; i++) if (ids[i] < ids[first]) first = i;
  const weight = Array.from(logits, (x, i) => {
    if (!greedy) return Math.exp(Math.fround(x - best) / scale);
    if (i !== first) cutBy[i] = "temperature";
    return i === first ? 1 : 0;
  });
  let rest = greedy || !tail ? 0 : tailMass(tail, best, scale);

  if (params.top_k > 0) {
    if (params.top_k <= n) rest = 0;
    for (let i = params.top_k; i < n; i++) cut(i, "top_k");
  }
  if (params.top_p < 1) {
    const all = weight.reduce((a, b) => a + b, rest);
    let before = 0;
    for (let i = 0; i < n; i++) {
      const mass = weight[i];
      if (i > 0 && before >= params.top_p * all) cut(i, "top_p");
      before += mass;
    }
    if (before >= params.top_p * all) rest = 0;
  }
  const sum = weight.reduce((a, b) => a + b, rest);
  const tokens = weight.map((w, i) => ({
    id: ids[i], logit: logits[i], pRaw: raw[i] / rawSum, p: w / sum, cutBy: cutBy[i],
  }));
  return { tokens, complete: rest === 0 };

  function cut(i, name) {
    cutBy[i] ??= name;
    weight[i] = 0;
  }
}

/** Σ exp((logit - best) / temperature) of the rest, each bin's tokens taken at its middle. */
function tailMass(tail, best, temperature) {
  const width = (tail.high - tail.low) / tail.counts.length;
  return tail.counts.reduce(
    (sum, count, i) => sum + count * Math.exp((tail.low + (i + 0.5) * width - best) / temperature), 0);
}
