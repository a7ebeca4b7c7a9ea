/** A share as text: `12.3 %`. */
export function formatPercent(share: number, digits = 1): string {
    return `${(100 * share).toFixed(digits)} %`;
}
