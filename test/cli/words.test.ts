// The library's errors in the words of the command line.
import { messageInWords } from '../../lib/cli/words.js';
import { ArgumentError, BlockprunerError, option } from '../../lib/errors.js';

test.each([
    [
        new ArgumentError('samples', 'a whole number of at least 1', 0),
        '--samples must be a whole number of at least 1, not 0'
    ],
    [new ArgumentError('gpuLayers', 'a whole number', 1.5), '--gpu-layers must be a whole number, not 1.5'],
    [new ArgumentError('orderFile', 'a file', 'x'), "--order must be a file, not 'x'"],
    [new ArgumentError('ratio', 'a number', NaN), '--ratio must be a number'],
    [
        new ArgumentError('field', 'left out', '`text`', `name a file by ${option('orderFile')}`),
        "--field must be left out, not '`text`': name a file by --order"
    ]
])('an argument out of its range: %s', (error, says) => expect(messageInWords(error)).toBe(says));

test('options that a message names', () => {
    const [yes, no] = [option('resume', true), option('resume', false)];
    const message = `go on by ${yes} or ${no}, with a smaller ${option('maxIncrease')}`;
    expect(messageInWords(new BlockprunerError('RESUME', message))).toBe(
        'go on by --resume or --no-resume, with a smaller --max-increase'
    );
    expect(messageInWords('anything')).toBe('anything');
});
