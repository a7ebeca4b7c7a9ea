// How numbers are written in pages, tables, messages and on the command line. Every function here returns text.

/**
 * A share as a percentage: 0.2 is `20.0 %`.
 * @param digits how many digits stand after the decimal point
 * @param options `short` leaves out zeros at the end (`20 %`), `signed` begins with + or − (`+20.0 %`)
 */
export function formatPercent(share: number, digits = 1, { short = false, signed = false } = {}): string {
    const percent = (100 * (signed ? Math.abs(share) : share)).toFixed(digits);
    const sign = !signed ? '' : share < 0 ? '−' : '+';
    return `${sign}${short ? Number(percent).toLocaleString('en-US', { maximumFractionDigits: digits }) : percent} %`;
}

/** A share in as few digits as it takes: `20 %`, `12.5 %`. */
export function formatShare(share: number): string {
    return formatPercent(share, 1, { short: true });
}

/**
 * A share with its standard error, where there is one: `46.5 ± 2.1 %`.
 * @param unit what stands at the end; a table that names its unit elsewhere needs none
 */
export function formatScore(
    { value, stderr }: { value: number; stderr: number | null },
    digits = 1,
    unit = ' %'
): string {
    const percent = (share: number) => (100 * share).toFixed(digits);
    return `${percent(value)}${stderr === null ? '' : ` ± ${percent(stderr)}`}${unit}`;
}

/** A change, given as a share of what was before: `+4.2 %`, `−0.03 %`; where it is large, the factor: `× 12.00`. */
export function formatChange(share: number): string {
    if (share >= 10) {
        return Number.isFinite(share) ? `× ${formatNumber(1 + share)}` : '∞';
    }
    return formatPercent(share, Math.abs(share) < 0.00095 ? 2 : 1, { signed: true });
}

/** A number in about four digits, for a person to read: `12.35`, `123.5`, `12,346`, `1.23e+9`, or `∞`. */
export function formatNumber(value: number): string {
    if (!Number.isFinite(value)) {
        return '∞';
    }
    if (value >= 1e9) {
        return value.toExponential(2);
    }
    const digits = Math.abs(value) < 100 ? 2 : Math.abs(value) < 1000 ? 1 : 0;
    return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/**
 * A perplexity or a divergence in a fixed number of digits after the decimal point: `12.3457`, or `∞`.
 * @param exponentFrom a value from which on a power of ten is written: `1.23e+6`
 */
export function formatFixed(value: number, digits: number, exponentFrom = Infinity): string {
    if (!Number.isFinite(value)) {
        return '∞';
    }
    return value < exponentFrom ? value.toFixed(digits) : value.toExponential(2);
}

/** A number of parameters in the unit that suits it: `7.24 B`, `123.5 M`, `45,678`. */
export function formatParameters(parameters: number): string {
    return parameters >= 1e9
        ? `${(parameters / 1e9).toFixed(2)} B`
        : parameters >= 1e6
          ? formatMillions(parameters)
          : parameters.toLocaleString('en-US');
}

/** A number of parameters in millions, for columns in one unit: `0.2 M`. */
export function formatMillions(parameters: number): string {
    return `${(parameters / 1e6).toFixed(1)} M`;
}

/** A size in the unit that suits it: `1.50 GiB`, `12.3 MiB`, `45 KiB`, `678 bytes`. */
export function formatBytes(bytes: number): string {
    return bytes >= 2 ** 30
        ? `${(bytes / 2 ** 30).toFixed(2)} GiB`
        : bytes >= 2 ** 20
          ? formatMebibytes(bytes)
          : bytes >= 2 ** 10
            ? `${(bytes / 2 ** 10).toFixed(0)} KiB`
            : `${bytes.toFixed(0)} bytes`;
}

/** A size in MiB, for columns in one unit: `0.4 MiB`. */
export function formatMebibytes(bytes: number): string {
    return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** A multiple: `1.25 ×`. */
export function formatFactor(factor: number): string {
    return `${factor.toFixed(2)} ×`;
}

/** A time in the unit that suits it: `45 s`, `12 min`, `3.5 h`. */
export function formatDuration(seconds: number): string {
    return seconds < 120
        ? formatSeconds(seconds)
        : seconds < 7200
          ? `${(seconds / 60).toFixed(0)} min`
          : `${(seconds / 3600).toFixed(1)} h`;
}

/** A time in seconds: `45 s`. */
export function formatSeconds(seconds: number, digits = 0): string {
    return `${seconds.toFixed(digits)} s`;
}

/** A time as a clock shows it: `2:05`. */
export function formatClock(seconds: number): string {
    return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, '0')}`;
}

/** A value of the model as it is, and of the pruned one. */
export interface Pair {
    dense: number;
    pruned: number;
}

export function formatPair(format: (value: number) => string, { dense, pruned }: Pair): string {
    return `${format(dense)} → ${format(pruned)}`;
}

export function formatPairChange({ dense, pruned }: Pair): string {
    return formatChange(pruned / dense - 1);
}
