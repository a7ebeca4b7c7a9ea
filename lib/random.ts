/**
 * Numbers from 0 to 1 that look random: by mulberry32, a few lines that give the same everywhere, which Math.random
 * can't.
 * @param seed a whole number; another one gives other numbers
 */
export function randomNumbers(seed: number): () => number {
    let state = seed >>> 0;
    return () => {
        state = (state + 0x6d2b79f5) >>> 0;
        let t = Math.imul(state ^ (state >>> 15), state | 1);
        t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
        return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
}
