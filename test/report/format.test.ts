// How numbers are written in pages, tables and on the command line.
import {
    formatBytes,
    formatChange,
    formatDuration,
    formatFixed,
    formatNumber,
    formatParameters,
    formatPercent,
    formatScore,
    formatShare
} from '../../lib/format.js';

test('percentages', () => {
    expect([formatPercent(0.2), formatPercent(0.12345, 2), formatPercent(-0.5)]).toEqual([
        '20.0 %',
        '12.35 %',
        '-50.0 %'
    ]);
    expect([formatShare(0.2), formatShare(0.125), formatShare(0.1249)]).toEqual(['20 %', '12.5 %', '12.5 %']);
    expect(formatPercent(0.03, 1, { signed: true })).toBe('+3.0 %');
    expect(formatPercent(-0.03, 1, { signed: true })).toBe('−3.0 %');
    expect(formatPercent(50, 2, { short: true, signed: true })).toBe('+5,000 %');
});

test('scores', () => {
    expect(formatScore({ value: 0.465, stderr: 0.0212 })).toBe('46.5 ± 2.1 %');
    expect(formatScore({ value: 0.465, stderr: null }, 2, '')).toBe('46.50');
});

test.each([
    [0, '+0.00 %'],
    [0.0003, '+0.03 %'],
    [-0.042, '−4.2 %'],
    [9.99, '+999.0 %'],
    [11, '× 12.00'],
    [Infinity, '∞']
])('a change by %d', (share, text) => expect(formatChange(share)).toBe(text));

test.each([
    [1.234, '1.23'],
    [123.45, '123.5'],
    [12345.6, '12,346'],
    [1.23e10, '1.23e+10'],
    [NaN, '∞']
])('the number %d', (value, text) => expect(formatNumber(value)).toBe(text));

test('a fixed number of digits', () => {
    expect([formatFixed(12.34567, 4), formatFixed(2e6, 2), formatFixed(2e6, 2, 1e6), formatFixed(Infinity, 2)]).toEqual(
        ['12.3457', '2000000.00', '2.00e+6', '∞']
    );
});

test('parameters, bytes and times have the unit that suits them', () => {
    expect([7.24e9, 123.46e6, 45678].map(formatParameters)).toEqual(['7.24 B', '123.5 M', '45,678']);
    expect([1.5 * 2 ** 30, 12.34 * 2 ** 20, 45 * 2 ** 10].map(formatBytes)).toEqual(['1.50 GiB', '12.3 MiB', '45 KiB']);
    expect([119, 720, 12600].map(formatDuration)).toEqual(['119 s', '12 min', '3.5 h']);
});
