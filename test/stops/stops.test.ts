// Whole runs that are stopped at random moments, in a search, a repair, writing or checking. `npm run test:stops` stops
// many more.
import { tiny } from '../models';

(process.platform === 'linux' ? test : test.skip)(
    'runs that are killed or interrupted leave nothing but their journal, and go on to the same bytes',
    async () => {
        const { stopRuns } = await import('./stops.mjs');
        const args = ['--remove', '2', '--samples', '2', '--context', '64', '--repair-tokens', '1024'];
        const options = { model: tiny, args: [...args, '--device', 'cpu', '--threads', '1'] };
        const { failures, endings } = await stopRuns({ ...options, kill: 2, interrupt: 3, seed: 7 });
        expect(failures).toEqual([]);
        expect(endings.length).toBeGreaterThan(0);
        expect(Math.max(...endings)).toBeLessThan(10_000); // not that they wait for what they had begun
    },
    300_000
);
