// Models that come and go: many one after the other, several at once, in worker threads, disposed while they are at
// work; and the addon loaded twice. In a process of its own, whose memory is that of nothing else.
import path from 'node:path';
import { startNode } from '../cli/run';
import { tiny } from '../models';

const script = path.join(__dirname, 'life_cycles.cjs');

interface Outcome {
    expected: number;
    resident: number[];
    disposed: string[];
    afterwards: string;
    together: number[];
    last: number;
    twice: number;
}

test('models come and go without a trace', async () => {
    const { ended } = startNode(['--expose-gc', script]);
    const { code, signal, stdout, stderr } = await ended;
    expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' });
    const { expected, resident, ...outcome } = JSON.parse(stdout) as Outcome;
    expect(resident).toHaveLength(100);
    // 8 MiB is what one model takes
    expect(Math.max(...resident.slice(50)) - Math.max(...resident.slice(10, 50))).toBeLessThan(4 * 2 ** 20);
    expect(outcome).toEqual({
        disposed: ['rejected', 'rejected'],
        afterwards: 'the model is disposed',
        together: Array.from({ length: 5 }, () => expected),
        last: expected,
        twice: expected
    });
});

test('worker threads have it one after the other', async () => {
    // the main thread never loads the addon, so that Node.js would unload it with each of them
    const workers = `
        const { Worker } = require('node:worker_threads');
        const found = [];
        const next = () => new Worker(${JSON.stringify(script)}).on('message', (value) => found.push(value)).on('exit', () => {
            found.length < 3 ? next() : console.log(new Set(found).size);
        });
        next();`;
    const { code, signal, stdout, stderr } = await startNode(['-e', workers]).ended;
    expect({ code, signal, stdout, stderr }).toEqual({ code: 0, signal: null, stdout: '1\n', stderr: '' });
});

test('kept streams take no more memory than they are given', async () => {
    const peak = async (keepBytes: number): Promise<{ peak: number; kept: number }> => {
        const use = `
            const { loadCalibration, Model } = require(${JSON.stringify(path.resolve(__dirname, '../../dist/index.js'))});
            (async () => {
                const model = await Model.load(${JSON.stringify(tiny)}, { device: 'cpu', threads: 1 });
                const text = await loadCalibration(model, { file: 'embedded', samples: 16, context: 256 });
                const streams = await model.keepStreams(text, { keepBytes: ${keepBytes} });
                for (const layer of [11, 6, 0]) {
                    await streams.evaluate([{ kind: 'attn', layer }], Array.from({ length: 16 }, (_, i) => i));
                }
                const { maxRSS } = process.resourceUsage();
                console.log(JSON.stringify({ peak: maxRSS * 1024, kept: streams.work.keptBytes }));
            })();`;
        const { stdout, stderr } = await startNode(['-e', use]).ended;
        expect(stderr).toBe('');
        return JSON.parse(stdout) as { peak: number; kept: number };
    };
    const none = await peak(0);
    const some = await peak(12 * 2 ** 20);
    const all = await peak(2 ** 30);
    expect([none.kept, some.kept < 12 * 2 ** 20, all.kept > 90 * 2 ** 20]).toEqual([0, true, true]);
    const slack = 8 * 2 ** 20;
    expect(some.peak - none.peak).toBeLessThan(12 * 2 ** 20 + slack);
    expect(all.peak - none.peak).toBeLessThan(all.kept + slack + all.kept / 8);
});
